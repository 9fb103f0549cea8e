"""Bulk loading over HTTP: lines read, checked and committed as they stream in."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator

import msgspec

from gateway.engine.types import Write
from gateway.errors import HotindexError, RateLimited, TooLarge
from gateway.ingest import intake
from gateway.node.node import Node
from gateway.node.values import Ticket
from gateway.protocol.checks import MAX_DOCUMENT_BYTES
from gateway.protocol.codec import JSON
from gateway.protocol.messages import DocumentInput

NDJSON_TYPE = "application/x-ndjson"
ERRORS_TOLD = 100

_IN_FLIGHT = 2048
_LINE_BYTES = 4 * MAX_DOCUMENT_BYTES
"""A document at its limit, its vector as JSON included."""


class LineError(msgspec.Struct, frozen=True):
    line: int
    code: str
    message: str
    retryable: bool


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the lines; `errors` holds the first of those that failed."""

    collection: str
    lines: int
    inserted: int
    updated: int
    unchanged: int
    failed: int
    index_version: int
    errors: list[LineError]


class _Tally:
    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.errors: list[LineError] = []
        self.failed = 0
        self.index_version = 0

    def fail(self, line: int, error: HotindexError) -> None:
        self.failed += 1
        if len(self.errors) < ERRORS_TOLD:
            self.errors.append(LineError(line, error.code, error.message, error.retryable))

    async def settle(self, line: int, ticket: Ticket) -> None:
        try:
            done = await ticket.done()
        except HotindexError as error:
            self.fail(line, error)
        else:
            self.statuses[done.results[0].status] += 1
            self.index_version = max(self.index_version, done.index_version)


async def load(node: Node, collection: str, body: AsyncIterator[bytes]) -> Loaded:
    """Upsert one document a line; each stands or falls by itself. Lines are no further ahead of commits than a bound."""
    name = node.resolve(collection)
    tally = _Tally()
    under_way: deque[tuple[int, Ticket]] = deque()
    number = 0
    async for line in _lines(body):
        number += 1
        if isinstance(line, HotindexError):
            tally.fail(number, line)
            continue
        if not line.strip():
            continue
        try:
            document = JSON.decode(line, DocumentInput)
            put = intake.put(document.id, document.vector, document.content, document.metadata, document.if_version)
            under_way.append((number, await _submitted(node, name, Write((put,), size_bytes=len(line)))))
        except HotindexError as error:
            tally.fail(number, error)
        if len(under_way) >= _IN_FLIGHT:
            await tally.settle(*under_way.popleft())
    for one in under_way:
        await tally.settle(*one)
    statuses = tally.statuses
    return Loaded(
        collection=name,
        lines=number,
        inserted=statuses["inserted"],
        updated=statuses["updated"],
        unchanged=statuses["unchanged"],
        failed=tally.failed,
        index_version=tally.index_version,
        errors=sorted(tally.errors, key=lambda error: error.line),
    )


async def _submitted(node: Node, collection: str, write: Write) -> Ticket:
    """Queue a write as soon as the collection's rate allows; nothing is read meanwhile."""
    while True:
        try:
            return await node.submit_write(collection, write)
        except RateLimited as limited:
            await asyncio.sleep(limited.retry_after_s)


async def _lines(body: AsyncIterator[bytes]) -> AsyncIterator[bytes | HotindexError]:
    """Split the stream into lines; one over the limit comes as an error, and the next ones follow."""
    rest = b""
    skipping = False
    async for block in body:
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield _too_long() if skipping else line
            skipping = False
        if len(rest) > _LINE_BYTES:
            rest, skipping = b"", True
    if rest or skipping:
        yield _too_long() if skipping else rest


def _too_long() -> HotindexError:
    return TooLarge(f"the line has more than {_LINE_BYTES} bytes")

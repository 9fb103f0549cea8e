"""Sending: several commands under way, in order, through refusals and lost connections.

Order: commands that are under way together share no document, so that one of them may be sent again after a later one was
applied. Parts of a command that was refused for good are sent one after the other. Results come in the order of the file.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

from hotindex import (
    Ack,
    Backoff,
    Client,
    Conflict,
    Document,
    HotindexError,
    InvalidRequest,
    NotFound,
    ServerError,
    WriteResult,
)

from gateway.commands.loading.formats import Chunk, Fault, Line

IN_FLIGHT = 4
"""Commands on their way at once: one is embedded and one committed while the next are read and sent."""
LONGEST_WAIT_S = 30.0
"""However long the gateway says to wait."""

_NAMED = re.compile(r"documents\[(\d+)\]\.?")

_Part: TypeAlias = list[tuple[Line, Document]]

T = TypeVar("T")


class GivenUp(HotindexError):
    """Nothing was acknowledged for as long as failures are borne with."""

    def __init__(self, after_s: float, last: HotindexError) -> None:
        super().__init__(
            "given_up",
            f"no progress for {after_s:.0f} s, the last error was {last}; the same command goes on later",
            retryable=True,
        )


class Patience:
    """Tries what fails again, until for `give_up_s` nothing has succeeded. One for all commands of a load.

    `failing` is what was waited for last, until something succeeds.
    """

    def __init__(self, give_up_s: float, backoff: Backoff, clock: Callable[[], float]) -> None:
        self.failing: HotindexError | None = None
        self._give_up_s = give_up_s
        self._backoff = backoff
        self._clock = clock
        self._stalled_since: float | None = None

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what `attempt` does. Raises GivenUp, and errors that aren't retryable."""
        tries = 0
        while True:
            began = self._clock()
            try:
                result = await attempt()
            except HotindexError as error:
                if not error.retryable:
                    self._stalled_since = self.failing = None
                    raise
                await self._wait(error, began, tries)
                tries += 1
            else:
                self._stalled_since = self.failing = None
                return result

    async def _wait(self, error: HotindexError, began: float, tries: int) -> None:
        self.failing = error
        self._stalled_since = began if self._stalled_since is None else min(began, self._stalled_since)
        stalled_s = self._clock() - self._stalled_since
        if stalled_s >= self._give_up_s:
            raise GivenUp(stalled_s, error) from error
        told_s: float | None = getattr(error, "retry_after_s", None)
        wait_s = self._backoff.delay_s(tries) if told_s is None else min(told_s, LONGEST_WAIT_S)
        await asyncio.sleep(min(wait_s, self._give_up_s - stalled_s))


@dataclass(slots=True)
class Outcome:
    """What became of a chunk: how many documents by status, and the lines that were refused, in order."""

    statuses: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[Line, Fault]] = field(default_factory=list)


class Sender:
    """Upserts chunks into one collection. With `load_id`, no other load's, lines with an `if_version` are idempotent."""

    def __init__(self, client: Client, collection: str, patience: Patience, load_id: str) -> None:
        self._client = client
        self._collection = collection
        self._patience = patience
        self._load_id = load_id

    async def send(self, chunk: Chunk) -> Outcome:
        """Return once each line is acknowledged or refused. Raises GivenUp, and what no line is to blame for."""
        outcome = Outcome()
        readable: _Part = []
        for line in chunk.lines:
            if isinstance(line.content, Fault):
                outcome.rejected.append((line, line.content))
            else:
                readable.append((line, line.content))
        parts = deque([readable] if readable else [])
        while parts:
            part = parts.popleft()
            try:
                ack = await self._patience.persist(partial(self._upsert, part))
            except HotindexError as error:
                if not _is_of_a_line(error):
                    raise
                at, halves = _split(part, error)
                if at is not None:
                    outcome.rejected.append((part[at][0], Fault(error.code, _NAMED.sub("", error.message))))
                parts.extendleft(reversed(halves))
            else:
                outcome.statuses.update(map(_status, ack.results))
        outcome.rejected.sort(key=lambda reject: reject[0].number)
        return outcome

    async def _upsert(self, part: _Part) -> Ack:
        documents = [document for _, document in part]
        conditional = any(document.if_version is not None for document in documents)
        event_id = f"load-{self._load_id}-{part[0][0].number}-{part[-1][0].number}" if conditional else None
        return await self._client.upsert(self._collection, documents, event_id=event_id)


def _is_of_a_line(error: HotindexError) -> bool:
    """Whether it is a document that the gateway refuses, and not everything there will be."""
    if isinstance(error, InvalidRequest):
        return error.field != "collection"
    return isinstance(error, Conflict) or (isinstance(error, ServerError) and error.code == "internal")


def _split(part: _Part, error: HotindexError) -> tuple[int | None, list[_Part]]:
    """Return which of a refused command's documents is at fault, if that is known, and the others, in two parts.

    Halves, so that many faults in one command cost no more than a command each, and a document isn't sent for all of them.
    """
    at: int | None = None
    if len(part) == 1:
        at = 0
    elif isinstance(error, ServerError) and (named := _NAMED.match(error.field or "")):
        at = int(named[1])
    middle = len(part) // 2
    halves: list[_Part] = [
        [one for i, one in enumerate(part) if i != at and (i < middle) == first] for first in (True, False)
    ]
    return at, [half for half in halves if half]


def _status(result: WriteResult) -> str:
    if result.status != "duplicate":
        return result.status
    return "inserted" if result.version == 1 else "updated"


async def epoch(url: str, collection: str) -> str | None:
    """Return which life of a collection there is, if any.

    On a connection of its own, so that nothing of the room comes in between the acknowledgements of a load.
    """
    async with Client(url) as client:
        try:
            async with client.subscribe(collection) as updates:
                return updates.epoch
        except NotFound:
            return None


def _shared(ids: frozenset[str], under_way: Iterable[tuple[Chunk, frozenset[str], object]]) -> bool:
    return not all(ids.isdisjoint(others) for _, others, _ in under_way)


async def in_order(
    read: Callable[[], Chunk | None], send: Callable[[Chunk], Coroutine[Any, Any, T]]
) -> AsyncGenerator[tuple[Chunk, T], None]:
    """Send what `read` returns, until None, and yield what became of it. `read` is called in a thread, one chunk ahead.

    What it raises comes after what was read before. Close it (`aclosing`) where it isn't exhausted: what is under way is
    cancelled then.
    """
    under_way: deque[tuple[Chunk, frozenset[str], asyncio.Task[T]]] = deque()
    ahead = asyncio.create_task(asyncio.to_thread(read))
    try:
        while True:
            await asyncio.wait([ahead])
            if ahead.exception() is not None or (chunk := ahead.result()) is None:
                break
            ahead = asyncio.create_task(asyncio.to_thread(read))
            ids = frozenset(line.content.id for line in chunk.lines if isinstance(line.content, Document))
            while under_way and (len(under_way) == IN_FLIGHT or _shared(ids, under_way)):
                yield under_way[0][0], await under_way[0][2]
                under_way.popleft()
            under_way.append((chunk, ids, asyncio.create_task(send(chunk))))
        while under_way:
            yield under_way[0][0], await under_way[0][2]
            under_way.popleft()
        await ahead
    finally:
        tasks = [ahead, *(task for _, _, task in under_way)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""A model behind an OpenAI-compatible service: batches, retries, pauses and the circuit, put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TypeAlias

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential

from gateway.embed import answers, pace, wire
from gateway.embed.answers import ContentRefused, Failed, KeyRefused, Misconfigured
from gateway.embed.circuit import Admission, Circuit
from gateway.embed.credentials import Credentials, KeyMissing
from gateway.embed.limit import BatchLimit
from gateway.embed.model import Batch, Usage
from gateway.embed.options import ServiceOptions
from gateway.embed.pace import Pace
from gateway.embed.transport import Transport, Unanswered
from gateway.engine.types import Vector
from gateway.errors import EmbeddingUnavailable, HotindexError, InvalidArgument

log = structlog.get_logger(__name__)

ALIKE = 4
"""So many texts of a call are refused and none is accepted: a harmless one shows whether it is them or the settings."""

HARMLESS = "hotindex"

_LEAST_TRY_S = 1.0
_TOKEN_BYTES = 4
"""How many bytes a token has about, where a service doesn't count (OpenAI's rule of thumb)."""

_backoff = wait_exponential(multiplier=pace.BACKOFF_FIRST_S, max=pace.BACKOFF_LONGEST_S)

Pause: TypeAlias = Callable[[float, asyncio.Event], Awaitable[None]]
"""Waits for so many seconds, or until the event is set."""


async def pause_for(seconds: float, interrupted: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await interrupted.wait()
    except TimeoutError:
        pass


@dataclass(slots=True)
class _Call:
    """One call of `embed`, all the requests it takes."""

    deadline_s: float
    probe: bool
    accepted: int = 0
    refused: int = 0
    rate_limited: int = 0


class Service:
    """A `gateway.embed.model.Model`. Vectors are of unit length whatever the service sends.

    Requests that fail are made again, with growing pauses, for `give_up_s` in all; then, or at once where the circuit is
    open, `embed` raises EmbeddingUnavailable. An opening circuit ends the pauses of other calls. A batch that is refused
    for what it holds is split, until it is known which texts it was.
    """

    def __init__(
        self,
        options: ServiceOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        pause: Pause = pause_for,
        random: Random | None = None,
    ) -> None:
        self.options = options
        self.name = options.name
        self.identity = f"{options.model}@{options.dimension}"
        self.dimension = options.dimension
        self.concurrency = options.concurrency
        self.usage = Usage()
        self._clock = clock
        self._wall_clock = wall_clock
        self._pause = pause
        self._random = random or Random()
        self._limit = BatchLimit(options.batch)
        self._pace = Pace()
        self._circuit = Circuit(options.circuit_reset_s, clock, self._random)
        self._opened = asyncio.Event()
        self._credentials = Credentials(options.key)
        self._transport = Transport(f"{options.url}/embeddings", options.concurrency)

    @property
    def batch(self) -> Batch:
        return self._limit.current

    @property
    def available(self) -> bool:
        return self._circuit.closed

    async def check(self) -> None:
        """Log a warning if there is no key; a command is left for the first call."""
        if self.options.key is None or self.options.key.kind == "command":
            return
        try:
            await self._credentials.key()
        except KeyMissing as error:
            log.warning("no key for embedding service", model=self.name, reason=str(error))

    async def embed(self, texts: Sequence[str]) -> list[Vector | HotindexError]:
        if not texts:
            return []
        admission = self._circuit.admit()
        if admission is Admission.REFUSED:
            raise self._out_of_reach()
        call = _Call(self._clock() + self.options.give_up_s, probe=admission is Admission.PROBE)
        try:
            return await self._embed(call, texts)
        except (Misconfigured, KeyMissing) as error:
            reason = str(error)
            self._failed(call, reason, self._clock(), for_good=True)
            raise EmbeddingUnavailable(reason, retry_after_s=self._circuit.wait_s()) from None
        finally:
            if call.probe:
                self._circuit.postpone()

    def embed_here(self, texts: Sequence[str]) -> dict[str, Vector]:  # noqa: ARG002 - it is elsewhere
        return {}

    async def close(self) -> None:
        await self._transport.close()

    async def _embed(self, call: _Call, texts: Sequence[str]) -> list[Vector | HotindexError]:
        try:
            return await self._tried(call, texts)
        except ContentRefused as refusal:
            if len(texts) == 1:
                return [await self._refused(call, texts[0], refusal)]
        refused = call.refused
        half = texts[: (len(texts) + 1) // 2]
        vectors = await self._embed(call, half)
        vectors += await self._embed(call, texts[len(half) :])
        if call.refused == refused:
            self._limit.too_large(Batch(len(half), _size_bytes(half)))
            log.info("batch too large", model=self.name, texts=len(texts), limit=self.batch.texts)
        return vectors

    async def _refused(self, call: _Call, text: str, refusal: ContentRefused) -> HotindexError:
        call.refused += 1
        if call.refused == ALIKE and not call.accepted:
            await self._distinguish(call)
        return InvalidArgument(
            f"the model {self.name} refused content {text[:80]!r}: {refusal.reason}", field="content"
        )

    async def _distinguish(self, call: _Call) -> None:
        try:
            await self._tried(call, [HARMLESS])
        except ContentRefused as refusal:
            reason = f"the service at {self.options.url} refuses every text: {refusal.reason}"
            self._failed(call, reason, self._clock())
            raise EmbeddingUnavailable(reason) from None

    async def _tried(self, call: _Call, texts: Sequence[str]) -> list[Vector | HotindexError]:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Failed),
            wait=self._next_pause_s,
            stop=partial(self._gives_up, call),
            sleep=partial(self._rest, call),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    return await self._ask(call, texts)
        except Failed as failure:
            if failure.rate_limited and call.rate_limited > 1:
                self._failed(call, failure.reason, self._clock())
            raise self._given_up(failure) from None
        raise AssertionError("the loop ends with an answer or an error")

    def _next_pause_s(self, state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        if isinstance(failure, Failed) and failure.pause_s is not None:
            return failure.pause_s
        return _backoff(state) * self._random.uniform(0.5, 1.0)

    def _gives_up(self, call: _Call, state: RetryCallState) -> bool:
        return call.probe or not self._circuit.closed or self._clock() + state.upcoming_sleep > call.deadline_s

    async def _ask(self, call: _Call, texts: Sequence[str]) -> list[Vector | HotindexError]:
        """Make one request, or two where the key has changed."""
        await self._turn(call)
        key = await self._credentials.key()
        try:
            embeddings = await self._request(call, texts, key)
        except KeyRefused:
            if not await self._credentials.renew(key):
                raise
            embeddings = await self._request(call, texts, await self._credentials.key())
        call.accepted += 1
        self._limit.accepted()
        return [
            self._no_direction(text) if vector is None else vector
            for text, vector in zip(texts, embeddings.vectors, strict=True)
        ]

    async def _request(self, call: _Call, texts: Sequence[str], key: str | None) -> wire.Embeddings:
        self.usage.calls += 1
        began_s = self._clock()
        answered = False
        try:
            embeddings = await self._exchange(call, texts, key)
            answered = True
        except Failed as failure:
            if failure.rate_limited:
                call.rate_limited += 1
            else:
                self._failed(call, failure.reason, began_s)
            if failure.pause_s is not None:
                self._pace.hold(self._clock(), failure.pause_s)
            raise
        except ContentRefused:
            self._succeeded()
            raise
        finally:
            self.usage.failed_calls += not answered
        self._succeeded()
        size_bytes = _size_bytes(texts)
        self.usage.texts += len(texts)
        self.usage.text_bytes += size_bytes
        self.usage.tokens += embeddings.tokens or -(-size_bytes // _TOKEN_BYTES)
        return embeddings

    async def _exchange(self, call: _Call, texts: Sequence[str], key: str | None) -> wire.Embeddings:
        left_s = max(call.deadline_s - self._clock(), _LEAST_TRY_S)
        try:
            response = await self._transport.post(
                wire.request(self.options, texts),
                key,
                timeout_s=min(self.options.timeout_s, left_s),
                limit_bytes=wire.answer_limit_bytes(len(texts), self.dimension),
            )
        except Unanswered as error:
            raise Failed(str(error)) from None
        embeddings = answers.judge(self.options, response, len(texts), key, self._wall_clock())
        pause_s = pace.told_s(response.headers, self._wall_clock(), refused=False)
        if pause_s is not None:
            self._pace.hold(self._clock(), pause_s)
        return embeddings

    async def _turn(self, call: _Call) -> None:
        """Wait until the next request may go."""
        if not (call.probe or self._circuit.closed):
            raise self._out_of_reach()
        while (pause_s := self._pace.wait_s(self._clock())) > 0:
            if call.probe or self._clock() + pause_s > call.deadline_s:
                raise EmbeddingUnavailable(
                    f"the model {self.name} has to wait: the service at {self.options.url} limits its calls",
                    retry_after_s=pause_s,
                )
            await self._rest(call, pause_s)

    async def _rest(self, call: _Call, pause_s: float) -> None:
        assert not call.probe, "a probe has one try"
        await self._pause(pause_s, self._opened)
        if not self._circuit.closed:
            raise self._out_of_reach()

    def _succeeded(self) -> None:
        if self._circuit.succeeded():
            self._opened.clear()
            log.info("embedding service is back", model=self.name)

    def _failed(self, call: _Call, reason: str, began_s: float, *, for_good: bool = False) -> None:
        if self._circuit.failed(reason, began_s, probe=call.probe, for_good=for_good):
            self._opened.set()
            log.warning("embedding service is out of reach", model=self.name, reason=reason)

    def _out_of_reach(self) -> EmbeddingUnavailable:
        reason = f"the model {self.name} is out of reach: {self._circuit.reason}"
        return EmbeddingUnavailable(reason, retry_after_s=self._circuit.wait_s())

    def _given_up(self, failure: Failed) -> EmbeddingUnavailable:
        told_s = pace.BACKOFF_LONGEST_S if failure.pause_s is None else failure.pause_s
        retry_after_s = told_s if self._circuit.closed else self._circuit.wait_s()
        reason = f"the model {self.name} is out of reach: the service at {self.options.url}: {failure.reason}"
        return EmbeddingUnavailable(reason, retry_after_s=retry_after_s)

    def _no_direction(self, text: str) -> HotindexError:
        return InvalidArgument(f"content {text[:80]!r} has a zero vector in the model {self.name}", field="content")


def _size_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)

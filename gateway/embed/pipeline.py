"""From single texts to the batches a model takes, and back.

A text that is on its way already, or was embedded a moment ago, isn't sent again. A batch goes out at once where none is
on its way; otherwise when it is full, when it holds a critical text, or when its first text has waited for GATHER_S, up
to the model's concurrency. So a text by itself waits for nothing, and under load calls are few.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from gateway.embed.model import Model
from gateway.engine.plan import Kept
from gateway.engine.types import Vector
from gateway.errors import EmbeddingUnavailable, HotindexError, Overloaded
from gateway.faults import internal

GATHER_S = 0.04
RECENT_BYTES = 8 << 20
"""What has come a moment ago and isn't committed yet is among it, and the texts of searches."""

_LANES = 3
_CRITICAL = 2
_ENTRY_BYTES = 200
_OUTCOME = Vector | HotindexError


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait for a model. Texts of events are bounded by the queues they wait in as well."""

    texts: int = 65_536
    size_bytes: int = 64 << 20


@dataclass(eq=False, slots=True)
class _Request:
    outcomes: list[_OUTCOME | None]
    missing: int
    future: asyncio.Future[list[_OUTCOME]]

    def settle(self, position: int, outcome: _OUTCOME) -> None:
        self.outcomes[position] = outcome
        self.missing -= 1
        self.finish()

    def finish(self) -> None:
        if not self.missing and not self.future.done():
            self.future.set_result([outcome for outcome in self.outcomes if outcome is not None])


@dataclass(eq=False, slots=True)
class _Text:
    text: str
    size_bytes: int
    lane: int
    since_s: float
    wanted_by: list[tuple[_Request, int]] = field(default_factory=list)
    sent: bool = False


class Pipeline:
    """An `Embedder` on top of a `Model`. Call on the event loop."""

    def __init__(self, model: Model, bounds: Bounds = Bounds(), recent_bytes: int = RECENT_BYTES) -> None:
        self.model = model
        self.name = model.name
        self.identity = model.identity
        self.dimension = model.dimension
        self.reused = Kept()
        """Texts that were on their way already, or had come a moment before."""
        self._bounds = bounds
        self._lanes: tuple[deque[_Text], ...] = tuple(deque() for _ in range(_LANES))
        self._known: dict[str, _Text] = {}
        """Texts that wait or are on their way."""
        self._waiting = 0
        self._waiting_bytes = 0
        self._recent: OrderedDict[str, Vector] = OrderedDict()
        self._recent_bytes = 0
        self._recent_limit = recent_bytes
        self._calls: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._sending = False
        self._ended = False

    @property
    def waiting(self) -> int:
        """How many texts wait for their turn."""
        return self._waiting

    def embed(self, texts: Sequence[str], priority: int = 0) -> asyncio.Future[list[_OUTCOME]]:
        loop = asyncio.get_running_loop()
        request = _Request([None] * len(texts), len(texts), loop.create_future())
        for position, text in enumerate(texts):
            self._want(text, priority, request, position, loop.time())
        request.finish()
        if self._waiting and not self._sending:
            # What else comes in this turn of the loop goes along.
            self._sending = True
            loop.call_soon(self._send)
        return request.future

    def embed_here(self, texts: Sequence[str]) -> dict[str, Vector]:
        return self.model.embed_here(texts)

    def end_within(self, seconds: float) -> None:
        """Give what waits and what is on its way so much more time, and take nothing after it."""
        asyncio.get_running_loop().call_later(seconds, self._end)

    def _end(self) -> None:
        self._ended = True
        waiting = {text for lane in self._lanes for text in lane if not text.sent}
        for lane in self._lanes:
            lane.clear()
        self._settle(waiting, [self._stopping()] * len(waiting))
        self._waiting = self._waiting_bytes = 0
        for call in self._calls:
            call.cancel()

    def _stopping(self) -> HotindexError:
        return EmbeddingUnavailable(f"the gateway stops before model {self.name!r} has answered", retry_after_s=1.0)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*self._calls)
        await self.model.close()

    def _want(self, text: str, lane: int, request: _Request, position: int, now_s: float) -> None:
        known = self._known.get(text)
        if known is not None:
            self.reused.add(text)
            known.wanted_by.append((request, position))
            if lane > known.lane and not known.sent:
                # It stays in the lower lane as well, to be passed over there: finding it takes as long as the lane is.
                known.lane = lane
                self._lanes[lane].append(known)
            return
        size_bytes = len(text.encode())
        if (vector := self._recent.get(text)) is not None:
            self.reused.add(text)
            self._recent.move_to_end(text)
            request.settle(position, vector)
        elif self._ended:
            request.settle(position, self._stopping())
        elif self._waiting >= self._bounds.texts or self._waiting_bytes + size_bytes > self._bounds.size_bytes:
            request.settle(
                position, Overloaded(f"{self._waiting} texts wait for model {self.name!r}", retry_after_s=1.0)
            )
        else:
            known = self._known[text] = _Text(text, size_bytes, lane, now_s, [(request, position)])
            self._lanes[lane].append(known)
            self._waiting += 1
            self._waiting_bytes += size_bytes

    def _send(self) -> None:
        """Send what is to go out now, and come back when the next is."""
        self._sending = False
        while self._waiting and len(self._calls) < self.model.concurrency and self._due():
            batch = self._take()
            task = asyncio.create_task(self._call(batch), name=f"embed {self.name}")
            self._calls.add(task)
            task.add_done_callback(self._call_ended)

    def _due(self) -> bool:
        limit = self.model.batch
        if (
            not self._calls
            or self._lanes[_CRITICAL]
            or self._waiting >= limit.texts
            or self._waiting_bytes >= limit.size_bytes
        ):
            return True
        now_s = asyncio.get_running_loop().time()
        wait_s = min(lane[0].since_s for lane in self._lanes if lane) + GATHER_S - now_s
        if wait_s <= 0:
            return True
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._ring)
        return False

    def _ring(self) -> None:
        self._timer = None
        self._send()

    def _take(self) -> list[_Text]:
        """Take the next batch off the lanes: the highest first."""
        limit = self.model.batch
        batch: list[_Text] = []
        size_bytes = 0
        for lane in reversed(self._lanes):
            while lane and len(batch) < limit.texts:
                if batch and size_bytes + lane[0].size_bytes > limit.size_bytes:
                    break
                text = lane.popleft()
                if text.sent:
                    continue
                text.sent = True
                size_bytes += text.size_bytes
                batch.append(text)
        self._waiting -= len(batch)
        self._waiting_bytes -= size_bytes
        return batch

    async def _call(self, batch: Sequence[_Text]) -> None:
        outcomes: Sequence[_OUTCOME]
        try:
            outcomes = await self.model.embed([text.text for text in batch])
        except asyncio.CancelledError:
            outcomes = [self._stopping()] * len(batch)
        except HotindexError as error:
            outcomes = [error] * len(batch)
        except Exception as error:  # one batch's fault must not end the others
            outcomes = [internal(error, model=self.name)] * len(batch)
        self._settle(batch, outcomes)

    def _settle(self, batch: Collection[_Text], outcomes: Sequence[_OUTCOME]) -> None:
        for text, outcome in zip(batch, outcomes, strict=True):
            del self._known[text.text]
            if isinstance(outcome, np.ndarray):
                self._remember(text, outcome)
            for request, position in text.wanted_by:
                request.settle(position, outcome)

    def _call_ended(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        self._send()

    def _remember(self, text: _Text, vector: Vector) -> None:
        size_bytes = vector.nbytes + text.size_bytes + _ENTRY_BYTES
        if size_bytes > self._recent_limit:
            return
        self._recent[text.text] = vector
        self._recent_bytes += size_bytes
        while self._recent_bytes > self._recent_limit:
            old, dropped = self._recent.popitem(last=False)
            self._recent_bytes -= dropped.nbytes + len(old.encode()) + _ENTRY_BYTES

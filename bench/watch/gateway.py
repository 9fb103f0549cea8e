"""Watches through a gateway: from an event's time to its watcher told, beside a subscriber of the room.

A gateway in a process of its own holds the movies' embeddings. Events come at a steady rate, each due at a time, from which
all is counted, however late it is sent. One in five puts a document at the head of one watch's list, by which another loses
it; the others change no answer. Watchers and the room's subscriber are one client, many times: they decode all they get.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import uvloop

from bench.engine import data
from bench.engine.data import Matrix
from bench.harness import Percentiles
from bench.ingest.processes import Gateway, gateway
from bench.watch.clients import Connection, Message, dealt, paced, settled
from bench.watch.events import Event, K, events
from bench.watch.exact import ANY, Asked, Corpus, answers

COLLECTION = "watched"
WATCHES, RATE, SECONDS = 1000, 500.0, 12.0
_EXACT_EVERY = 25
"""Each of so many watches asks for exact searches; these take too long here for all to."""
_DEPTH = 3 * K
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Checked:
    """All lists at the end, beside brute force. `right` are those that lack at most what their first search missed.

    `recall` is of all, `exact` counts the watches that asked for exact searches: these have to be equal altogether.
    """

    equal: int
    right: int
    exact: int
    recall: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Of `events`, of which `aimed` change an answer. `room` is of these alone, `room_alone` before there were watches."""

    watches: int
    events: int
    aimed: int
    told: Percentiles
    room: Percentiles
    room_alone: Percentiles
    late: Percentiles
    """How long after it was due an event was sent."""
    updates: int
    lost: int
    """Events that changed a watch's answer, of which it wasn't told."""
    checked: Checked


@dataclass(slots=True)
class Audience:
    """The watches' lists as their clients know them, and when which watch was told of which event."""

    lists: list[dict[str, float]] = field(default_factory=list)
    told_at: dict[tuple[int, int], float] = field(default_factory=dict)
    room_at: dict[int, float] = field(default_factory=dict)
    updates: int = 0

    async def watch(self, url: str, queries: Matrix, stack: AsyncExitStack) -> None:
        """Open all watches, over several connections."""
        self.lists = [{} for _ in queries]
        await asyncio.gather(*(self._watch(url, queries, places, stack) for places in dealt(range(len(queries)))))

    async def _watch(self, url: str, queries: Matrix, places: Sequence[int], stack: AsyncExitStack) -> None:
        place_of: dict[str, int] = {}
        connection = await stack.enter_async_context(Connection.opened(url, partial(self._update, place_of)))
        commands = [
            {
                "action": "watch",
                "collection": COLLECTION,
                "vector": queries[at].tobytes(),
                "k": K,
                "exact": at % _EXACT_EVERY == 0,
            }
            for at in places
        ]
        for at, reply in zip(places, await connection.ask_all(commands), strict=True):
            place_of[reply["watch_id"]] = at
            self.lists[at] = {one["id"]: one["score"] for one in reply["results"]}

    def _update(self, place_of: dict[str, int], push: Message, at: float) -> None:
        place = place_of[push["watch_id"]]
        self.updates += 1
        held = self.lists[place]
        for document_id in push["removed"]:
            del held[document_id]
        for one in (*push["added"], *push["changed"]):
            held[one["id"]] = one["score"]
            self.told_at.setdefault((place, one["metadata"].get("n", -1)), at)

    def event(self, push: Message, at: float) -> None:
        """Take in what the room is told."""
        self.room_at[push["event"]["metadata"]["n"]] = at

    def checked(self, asked: Asked, corpus: Corpus, ids: Sequence[str], written: Set[str]) -> Checked:
        """Compare all lists with brute force. None may lack what was `written` since it was opened."""
        equal = right = found = 0
        for place, nearest in enumerate(answers(asked, corpus, ids, _DEPTH)):
            held = self.lists[place]
            shown = sorted(held.items(), key=lambda pair: (-pair[1], pair[0]))
            if shown == nearest[:K]:
                equal += 1
                right += 1
            elif place % _EXACT_EVERY and len(shown) == K:
                right += shown == [one for one in nearest if one[0] in held or one[0] in written][:K]
            found += len(held.keys() & {document_id for document_id, _ in nearest[:K]})
        return Checked(equal, right, len(self.lists[::_EXACT_EVERY]), found / K / len(self.lists))


@dataclass(slots=True)
class Stream:
    """Sends events on, and knows what the documents are after them. The movies themselves stay as they are."""

    producer: Connection
    made: Iterator[Event]
    sent: list[Event] = field(default_factory=list)
    due_at: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)

    async def run(self, seconds: float) -> range:
        """Send events for so long; return their numbers when all are acknowledged."""
        first, replies = len(self.sent), []
        async for _, due in paced(round(RATE * seconds), RATE):
            event = next(self.made)
            metadata = {"n": len(self.sent)}
            self.sent.append(event)
            self.due_at.append(due)
            self.late_s.append(time.perf_counter() - due)
            vector = event.vector.tobytes()
            replies.append(
                self.producer.ask(action="upsert", collection=COLLECTION, id=event.id, vector=vector, metadata=metadata)
            )
        await asyncio.gather(*replies)
        return range(first, len(self.sent))


def measure(seed: int, scale: float) -> Figures:
    """Run the part."""
    with gateway() as subject:
        return uvloop.run(_measure(subject, np.random.default_rng(seed), min(1.0, scale)))


async def _measure(subject: Gateway, rng: np.random.Generator, scale: float) -> Figures:
    rows = data.movies()
    rows = rows[: max(2000, round(len(rows) * scale))]
    queries = data.noisy(rows[rng.integers(0, len(rows), max(32, round(WATCHES * scale)))], rng)
    audience, seconds = Audience(), max(1.0, SECONDS * scale)
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(Connection.opened(subject.ws))
        await _load(producer, rows)
        await subject.idle()
        room = await stack.enter_async_context(Connection.opened(subject.ws, audience.event))
        await room.ask(action="subscribe", collection=COLLECTION)
        stream = Stream(producer, events(queries, rows, rng))
        await stream.run(1.0)
        alone = await stream.run(seconds / 2)
        await audience.watch(subject.ws, queries, stack)
        await stream.run(1.0)
        measured = await stream.run(seconds)
        aimed = [(n, at) for n in measured if (at := stream.sent[n].watch) is not None]
        await settled(lambda: sum((at, n) in audience.told_at for n, at in aimed), len(aimed))
        await settled(lambda: len(audience.room_at), len(stream.sent))
        await subject.idle()
        told = {n: audience.told_at[at, n] for n, at in aimed if (at, n) in audience.told_at}
        return Figures(
            watches=len(queries),
            events=len(measured),
            aimed=len(aimed),
            told=_since(stream, told),
            room=_since(stream, {n: audience.room_at[n] for n, _ in aimed}),
            room_alone=_since(stream, {n: audience.room_at[n] for n in alone}),
            late=Percentiles.of([stream.late_s[n] for n in measured]),
            updates=audience.updates,
            lost=len(aimed) - len(told),
            checked=_checked(audience, queries, rows, stream.sent[: alone.stop], stream.sent[alone.stop :]),
        )


async def _load(producer: Connection, rows: Matrix) -> None:
    documents = [{"id": f"d{i}", "vector": row.tobytes()} for i, row in enumerate(rows)]
    batches = [documents[start : start + _BATCH] for start in range(0, len(documents), _BATCH)]
    await producer.ask_all(
        [{"action": "upsert", "collection": COLLECTION, "documents": one} for one in batches], at_once=8
    )


def _since(stream: Stream, arrived: dict[int, float]) -> Percentiles:
    return Percentiles.of([at - stream.due_at[n] for n, at in arrived.items()])


def _checked(
    audience: Audience, queries: Matrix, rows: Matrix, before: Sequence[Event], after: Sequence[Event]
) -> Checked:
    latest = {f"d{i}": row for i, row in enumerate(rows)} | {one.id: one.vector for one in (*before, *after)}
    corpus = Corpus(np.stack(list(latest.values())), np.zeros(len(latest), np.int64))
    asked = Asked(queries, np.full(len(queries), ANY))
    return audience.checked(asked, corpus, list(latest), {one.id for one in after})

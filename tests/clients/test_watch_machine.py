"""Watches over a connection that is cut and a gateway that is started again, while documents change in and out of them:
after each step, the client's lists are what comparing with every document finds."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import hotindex
import numpy as np
import pytest
from hotindex import Change, Match, Watch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.clients.changes import (
    FILTERS,
    Chance,
    Delete,
    Documents,
    Metadata,
    Operation,
    Patch,
    Put,
    Vector,
    some_metadata,
)
from tests.clients.served import Served

IDS = [f"d{number:02}" for number in range(80)]
DIMENSION = 6
_drawn = np.random.default_rng(5).normal(size=(90, DIMENSION)).astype(np.float32)
VECTORS = [*_drawn, *_drawn[:8], *(2 * _drawn[8:12])]
"""Some are equal, or so with cosine: there are ties."""
FOLLOWED = IDS[:4]
OFTEN = [*IDS, *(8 * FOLLOWED)]
CHANCE = Chance(OFTEN, VECTORS)
PATIENCE_S = 20.0

ids = st.sampled_from(OFTEN)
vectors = st.sampled_from(range(len(VECTORS)))
seeds = st.integers(0, 1 << 32)


@dataclass(frozen=True)
class Asked:
    """What is watched: what is near a vector, or near the document `follows`."""

    k: int
    where: int
    min_score: float
    exact: bool
    query: int
    follows: str | None = None

    def command(self) -> dict[str, Any]:
        what = {"vector": VECTORS[self.query]} if self.follows is None else {"id": self.follows}
        least = None if self.min_score == -math.inf else self.min_score
        return {**what, "k": self.k, "filter": FILTERS[self.where][0], "min_score": least, "exact": self.exact}


asking = st.builds(
    Asked,
    k=st.sampled_from([1, 3, 5, 10]),
    where=st.sampled_from(range(len(FILTERS))),
    min_score=st.sampled_from([-math.inf, -math.inf, -0.123]),
    exact=st.booleans(),
    query=vectors,
    follows=st.sampled_from([None, None, *FOLLOWED]),
)


@dataclass
class State:
    """What the collection holds, as the test knows it."""

    metric: str
    documents: Documents = field(default_factory=dict)

    def copy(self) -> State:
        return State(self.metric, dict(self.documents))

    def scores(self, asked: Asked, query: Vector) -> dict[str, float]:
        """Return the scores of all documents that may be listed."""
        fits = FILTERS[asked.where][1]
        scored = {
            document_id: self._score(query, vector)
            for document_id, (vector, metadata) in self.documents.items()
            if document_id != asked.follows and fits(metadata)
        }
        return {document_id: score for document_id, score in scored.items() if score >= asked.min_score}

    def _score(self, query: Vector, vector: Vector) -> float:
        a, b = query.astype(np.float64), vector.astype(np.float64)
        if self.metric == "l2":
            return -float(((a - b) ** 2).sum())
        product = float(a @ b)
        return product if self.metric == "ip" else product / float(np.linalg.norm(a) * np.linalg.norm(b))

    def agrees(self, matches: Sequence[Match], asked: Asked, query: Vector) -> bool:
        """Tell whether a list is the top k; which of equal scores are in it is left open, as rounding decides."""
        scores = self.scores(asked, query)
        best = sorted(scores.values(), reverse=True)[: asked.k]
        told = [match.score for match in matches]
        return (
            len({match.id for match in matches}) == len(told) == len(best)
            and all(match.id in scores and match.metadata == self.documents[match.id][1] for match in matches)
            and all(map(_close, told, (scores[match.id] for match in matches)))
            and all(map(_close, told, best))
        )


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=0, abs_tol=1e-5)


@dataclass(eq=False)
class Follower:
    """A watch, and what its consumer makes of the differences."""

    asked: Asked
    query: Vector
    watch: Watch
    held: dict[str, Match] = field(default_factory=dict)
    told: list[Change] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def consume(self) -> None:
        try:
            async for change in self.watch:
                for document_id in change.removed:
                    del self.held[document_id]
                assert not self.held.keys() & {match.id for match in change.added}
                assert self.held.keys() >= {match.id for match in change.changed}
                self.held |= {match.id: match for match in (*change.added, *change.changed)}
                assert change.results == self.list
                self.told.append(change)
                self.news.set()
        finally:
            self.news.set()

    @property
    def list(self) -> tuple[Match, ...]:
        return tuple(sorted(self.held.values(), key=lambda match: (-match.score, match.id)))


class WatchMachine(RuleBasedStateMachine):
    @initialize(
        metric=st.sampled_from(["cosine", "ip", "l2"]),
        hot_target=st.sampled_from([4, 1024]),
        documents=st.sampled_from([4, 40, 80, 80]),
        seed=seeds,
        first=st.lists(asking, min_size=3, max_size=6),
    )
    def begin(self, metric: str, hot_target: int, documents: int, seed: int, first: list[Asked]) -> None:
        self.runner = asyncio.Runner()
        self.served = Served(hot_target=hot_target)
        self.runner.run(self.served.start("m", dimension=DIMENSION, metric=metric))
        self.state = State(metric)
        self.states: dict[int, State] = {}
        self.followers: dict[Follower, asyncio.Task[None]] = {}
        self.run(self._write(CHANCE.puts(seed, documents)))
        for asked in first:
            self.join(asked)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something, and see that all lists follow."""

        async def done() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await work
            await self._settle()

        self.runner.run(done())

    async def _settle(self) -> None:
        await self._agreed()
        await self.served.client.ping()  # what was told before its answer has come, if only of what was in between
        await self._agreed()
        for follower in self.followers:
            for change in follower.told:
                if follower.asked.follows is None:
                    state = self.states[change.index_version]
                    assert state.agrees(change.results, follower.asked, follower.query), (follower.asked, change)
            follower.told.clear()

    async def _agreed(self) -> None:
        for follower, consumer in self.followers.items():
            try:
                async with asyncio.timeout(PATIENCE_S):
                    while not self.state.agrees(follower.list, follower.asked, follower.query):
                        follower.news.clear()
                        await follower.news.wait()
                        assert not consumer.done() or consumer.result()
            except TimeoutError:
                expected = self.state.scores(follower.asked, follower.query)
                raise AssertionError(f"{follower.asked} has {follower.list}, not of {expected}") from None

    async def _write(self, operations: Sequence[Operation]) -> None:
        """Write in one transaction."""
        async with self.served.writer.transaction("m") as transaction:
            for operation in operations:
                operation(transaction, self.state.documents)
                self._follow()
        if transaction.ack is not None:
            self.states[transaction.ack.index_version] = self.state.copy()

    def _follow(self) -> None:
        """Note what is near what; the last vector of a document that is deleted stays."""
        for follower in self.followers:
            document = self.state.documents.get(follower.asked.follows or "")
            if document is not None:
                follower.query = document[0]

    @rule(document_id=ids, vector=vectors, about=some_metadata)
    def put(self, document_id: str, vector: int, about: Metadata) -> None:
        self.run(self._write([Put(document_id, VECTORS[vector], about)]))

    @rule(document_id=ids, about=some_metadata)
    def patch(self, document_id: str, about: Metadata) -> None:
        self.run(self._write([Patch(document_id, about)]))

    @rule(document_id=ids)
    def delete(self, document_id: str) -> None:
        self.run(self._write([Delete(document_id)]))

    @rule(count=st.integers(2, 20), seed=seeds)
    def write_at_once(self, count: int, seed: int) -> None:
        self.run(self._write(CHANCE.operations(seed, count)))

    @rule(count=st.integers(2, 20), seed=seeds)
    def write_one_after_the_other(self, count: int, seed: int) -> None:
        self.run(self._write_each(count, seed))

    async def _write_each(self, count: int, seed: int) -> None:
        for operation in CHANCE.operations(seed, count):
            await self._write([operation])

    @precondition(lambda self: self.followers)
    @rule(which=seeds, count=st.integers(1, 40))
    def delete_the_nearest(self, which: int, count: int) -> None:
        """As many as to need another search."""
        follower = self._some_follower(which)
        scores = self.state.scores(follower.asked, follower.query)
        self.run(self._write([Delete(one) for one in sorted(scores, key=lambda one: -scores[one])[:count]]))

    def _some_follower(self, which: int) -> Follower:
        return [*self.followers][which % len(self.followers)]

    @rule(asked=asking)
    def join(self, asked: Asked) -> None:
        if len(self.followers) < 8 and (asked.follows is None or asked.follows in self.state.documents):
            self.run(self._join(asked))

    async def _join(self, asked: Asked) -> None:
        query = VECTORS[asked.query] if asked.follows is None else self.state.documents[asked.follows][0]
        follower = Follower(asked, query, self.served.client.watch("m", **asked.command()))
        self.followers[follower] = asyncio.create_task(follower.consume())

    @precondition(lambda self: self.followers)
    @rule(which=seeds)
    def leave(self, which: int) -> None:
        self.run(self._leave(self._some_follower(which)))

    async def _leave(self, follower: Follower) -> None:
        consumer = self.followers.pop(follower)
        await follower.watch.close()
        with pytest.raises(hotindex.HotindexError, match="the watch is closed"):
            await consumer

    @rule()
    def lose_the_connection(self) -> None:
        self.run(self._away(count=0, seed=0))

    @rule(count=st.integers(1, 10), seed=seeds)
    def write_while_away(self, count: int, seed: int) -> None:
        self.run(self._away(count, seed))

    async def _away(self, count: int, seed: int) -> None:
        await self.served.away(lambda: self._write_each(count, seed))
        await self._watched_again()

    @rule()
    def start_the_gateway_again(self) -> None:
        self.run(self._start_again())

    async def _start_again(self) -> None:
        await self.served.start_again()
        await self._watched_again()

    async def _watched_again(self) -> None:
        """Wait until the client has; what follows a document that is gone has ended."""
        for follower, consumer in list(self.followers.items()):
            if follower.asked.follows is None or follower.asked.follows in self.state.documents:
                while follower.watch.watch_id is None:
                    await asyncio.sleep(0.001)
            else:
                with pytest.raises(hotindex.NotFound):
                    await consumer
                del self.followers[follower]

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.runner.run(self._end())
        finally:
            self.runner.run(self.served.stop())
            self.runner.close()

    async def _end(self) -> None:
        await self._settle()
        for follower in list(self.followers):
            await self._leave(follower)


# What fails is waited for: to shrink it takes too long.
WatchMachine.TestCase.settings = settings(phases=[Phase.generate], max_examples=20, stateful_step_count=25)
TestWatches = pytest.mark.timeout(240)(WatchMachine.TestCase)

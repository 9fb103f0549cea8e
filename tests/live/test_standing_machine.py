"""Watches that are added, moved, and refilled by searches of other moments, while documents change in and out of their
filters: each always holds what comparing with everything finds, and so does the client that was told the differences."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.engine.filter import Filter
from gateway.engine.types import Applied, Metric, Operation, Patch, Put, Remove
from gateway.live import filters
from gateway.live.standing import Standing
from gateway.live.types import Affected, Nearest, Watch
from tests.live.support import Client, World, take_difference, vector

IDS = [f"d{number}" for number in range(48)]
# Their products, norms and distances are exact in float32, hence ties are ties.
VECTORS = [vector(*((-0.5 if bits >> i & 1 else 0.5) for i in range(4))) for bits in range(16)] + [
    vector(*(sign * (i == axis) for i in range(4))) for axis in range(4) for sign in (1.0, -1.0)
]
FILTERS = [None, None, Filter({"x": {"$gte": 2}}), Filter({"x": 1}), Filter({"y": {"$exists": True}})]

ids = st.sampled_from(IDS)
vectors = st.sampled_from(VECTORS)
metadata = st.fixed_dictionaries({"x": st.integers(0, 3)}, optional={"y": st.just(1)})
seeds = st.integers(0, 1 << 32)
lateness = st.sampled_from([False, False, False, True])
watches = st.builds(
    Watch,
    query=vectors,
    k=st.sampled_from([1, 2, 5, 8]),
    where=st.sampled_from(FILTERS),
    min_score=st.sampled_from([-math.inf, -math.inf, -2.0, 0.5]),
    excluded=st.frozensets(st.sampled_from(IDS[:8]), max_size=3),
)


@dataclass
class Follower:
    watch: Watch
    number: int
    as_of: int
    client: Client = field(default_factory=Client)
    dirty: bool = False
    searched: Nearest | None = None


class StandingMachine(RuleBasedStateMachine):
    @initialize(
        metric=st.sampled_from(list(Metric)),
        log_bytes=st.sampled_from([0, 3000, 1 << 20, 1 << 20]),
        documents=st.sampled_from([0, 24, 48, 48]),
        seed=seeds,
        first=st.lists(watches, min_size=4, max_size=8),
        many=st.sampled_from([1, 2, 64]),
    )
    def begin(self, metric: Metric, log_bytes: int, documents: int, seed: int, first: list[Watch], many: int) -> None:
        self.patching = pytest.MonkeyPatch()
        self.patching.setattr(filters, "MANY", many)
        self.world = World(metric)
        rng = random.Random(seed)
        self.world.commit(*(_put(rng, document_id) for document_id in IDS[:documents]))
        self.standing = Standing(4, metric, self.world.index_version, log_bytes)
        self.behind: deque[Applied] = deque()
        self.followers: list[Follower] = []
        for one in first:
            self.add(one, with_vectors=True)

    def _commit(self, operations: Sequence[Operation], *, blind: bool) -> None:
        live = self.world.state.documents
        # A patch needs a document; one with neither a vector nor a document isn't a write.
        operations = [
            one
            for one in operations
            if one.id in live or (isinstance(one, Put) and one.vector is not None) or isinstance(one, Remove)
        ]
        operations = [
            one for i, one in enumerate(operations) if isinstance(one, Put) or not _removed_before(operations, i)
        ]
        with_vectors = self.standing.wants_vectors and not blind
        applied = self.world.commit(*operations, with_vectors=with_vectors)
        if applied is not None:
            self.behind.append(applied)

    @rule(document_id=ids, one=vectors, about=st.none() | metadata, late=lateness)
    def put(self, document_id: str, one: Any, about: dict[str, Any] | None, late: bool) -> None:
        self._commit([Put(document_id, one, metadata=about)], blind=False)
        self.catch_up(late)

    @rule(document_id=ids, about=metadata, blind=st.sampled_from([False, False, True]), late=lateness)
    def patch(self, document_id: str, about: dict[str, Any], blind: bool, late: bool) -> None:
        self._commit([Patch(document_id, {"y": None, **about})], blind=blind)
        self.catch_up(late)

    @rule(count=st.integers(2, 40), seed=seeds, blind=st.sampled_from([False, False, False, True]), late=lateness)
    def write_many(self, count: int, seed: int, blind: bool, late: bool) -> None:
        rng = random.Random(seed)
        self._commit([_operation(rng) for _ in range(count)], blind=blind)
        self.catch_up(late)

    @precondition(lambda self: self.followers)
    @rule(which=seeds, count=st.integers(1, 12), late=lateness)
    def delete_the_nearest(self, which: int, count: int, late: bool) -> None:
        follower = self.followers[which % len(self.followers)]
        ranked = self.world.state.ranked(follower.watch, self.world.spec.metric)
        self._commit([Remove(document.id) for document, _, _ in ranked[:count]], blind=False)
        self.catch_up(late)

    def catch_up(self, late: bool) -> None:
        while self.behind and not late:
            self._affected(self.standing.apply(self.behind.popleft()))

    def _affected(self, affected: Affected) -> None:
        by_number = {follower.number: follower for follower in self.followers}
        for number in affected.changed:
            by_number[number].dirty = True
        for number in affected.short:
            assert self.standing.waits(number)

    @rule(watch=watches, with_vectors=st.booleans())
    def join(self, watch: Watch, with_vectors: bool) -> None:
        self.add(watch, with_vectors=with_vectors)

    def add(self, watch: Watch, *, with_vectors: bool) -> None:
        nearest = self.world.search(watch, with_vectors=with_vectors)
        number = self.standing.add(watch, nearest)
        follower = Follower(watch, number, nearest.index_version)
        self.followers.append(follower)
        for one in self.standing.answer(number):
            follower.client.held[one.document.id] = (one.score, one.document)

    @precondition(lambda self: self.followers)
    @rule(which=seeds, new=watches)
    def search_to_move(self, which: int, new: Watch) -> None:
        follower = self.followers[which % len(self.followers)]
        new = replace(new, k=follower.watch.k)
        nearest = self.world.search(new)
        self.standing.move(follower.number, new, nearest)
        follower.watch, follower.as_of, follower.dirty, follower.searched = new, nearest.index_version, True, None

    @precondition(lambda self: self.followers)
    @rule(which=seeds)
    def search(self, which: int) -> None:
        follower = self.followers[which % len(self.followers)]
        follower.searched = self.world.search(follower.watch)

    @precondition(lambda self: any(follower.searched for follower in self.followers))
    @rule(which=seeds)
    def refill(self, which: int) -> None:
        searched = [follower for follower in self.followers if follower.searched]
        follower = searched[which % len(searched)]
        nearest = follower.searched
        assert nearest is not None
        if self.standing.reaches(nearest.index_version):
            self.standing.refill(follower.number, nearest)
            follower.as_of, follower.dirty = nearest.index_version, True
        follower.searched = None

    @precondition(lambda self: self.followers)
    @rule(which=seeds, count=st.integers(1, 20), commits=st.integers(1, 3), seed=seeds)
    def write_while_searching(self, which: int, count: int, commits: int, seed: int) -> None:
        self.search(which)
        rng = random.Random(seed)
        for _ in range(commits):
            self._commit([_operation(rng) for _ in range(count)], blind=False)
        self.catch_up(late=False)
        self.refill(which)

    @precondition(lambda self: self.behind)
    @rule()
    def apply_one(self) -> None:
        self._affected(self.standing.apply(self.behind.popleft()))

    @rule()
    def refill_all(self) -> None:
        for follower in self.followers:
            while self.standing.waits(follower.number):
                self.catch_up(late=False)
                nearest = self.world.search(follower.watch)
                self.standing.refill(follower.number, nearest)
                follower.as_of, follower.dirty = nearest.index_version, True

    @precondition(lambda self: self.followers)
    @rule(which=seeds)
    def remove(self, which: int) -> None:
        follower = self.followers[which % len(self.followers)]
        self.followers.remove(follower)
        self.standing.remove(follower.number)

    @rule()
    def sweep(self) -> None:
        standing = self.standing
        standing._documents.sweep(held for shelf in standing._shelves.values() for held in shelf.held)

    @rule()
    def tell(self) -> None:
        for follower in self.followers:
            if follower.dirty and not self.standing.waits(follower.number):
                follower.client.apply(take_difference(self.standing, follower.number))
                follower.dirty = False

    @rule(seed=seeds, share=st.sampled_from([0.5, 1.0]))
    def tell_some(self, seed: int, share: float) -> None:
        """Differences of all at once; those that their clients don't take are still there afterwards."""
        rng = random.Random(seed)
        found = self.standing.differences(follower.number for follower in self.followers)
        assert all(found.values())
        taken = {number: difference for number, difference in found.items() if rng.random() < share}
        self.standing.tell(taken)
        for follower in self.followers:
            waits = self.standing.waits(follower.number)
            assert not (waits and follower.number in found)
            if follower.number in taken:
                follower.client.apply(taken[follower.number])
            if not waits:
                follower.dirty = follower.number in found and follower.number not in taken
        left = {number: difference for number, difference in found.items() if number not in taken}
        assert self.standing.differences(follower.number for follower in self.followers) == left

    @invariant()
    def answers_equal_comparing_with_everything(self) -> None:
        for follower in self.followers:
            if self.standing.waits(follower.number):
                assert not take_difference(self.standing, follower.number)
                continue
            state = self.world.states[max(follower.as_of, self.standing.index_version)]
            expected = state.top(follower.watch, self.world.spec.metric)
            shelf = self.standing._shelf_of[follower.number]
            at, rows = shelf.place(follower.number).start, shelf.rows
            shown = rows.numbers[at, : follower.watch.k].tolist()
            held = [
                (self.standing._documents[number].id, score)
                for number, score in zip(shown, rows.scores[at].tolist(), strict=False)
                if number >= 0
            ]
            assert held == [(document_id, score) for document_id, score, _ in expected]
            # A search that is ahead brings states of documents that other watches hold too.
            ahead = any(one.as_of > self.standing.index_version for one in self.followers)
            if not follower.dirty and not ahead:
                assert follower.client.top() == expected

    def teardown(self) -> None:
        if hasattr(self, "standing"):
            self.patching.undo()
            self.catch_up(late=False)
            self.refill_all()
            self.tell()
            self.answers_equal_comparing_with_everything()
            assert not any(self.standing.waits(follower.number) for follower in self.followers)


def _put(rng: random.Random, document_id: str) -> Put:
    about = {"x": rng.randrange(4), **({"y": 1} if rng.random() < 0.5 else {})}
    return Put(document_id, rng.choice(VECTORS), metadata=about)


def _operation(rng: random.Random) -> Operation:
    document_id = rng.choice(IDS)
    chance = rng.random()
    if chance < 0.2:
        return Remove(document_id)
    if chance < 0.4:
        return Patch(document_id, {"x": rng.randrange(4), "y": rng.choice([1, None])})
    return _put(rng, document_id)


def _removed_before(operations: Sequence[Operation], at: int) -> bool:
    """Tell whether an operation's document was deleted by one before it and not put since."""
    earlier = [one for one in operations[:at] if one.id == operations[at].id and not isinstance(one, Patch)]
    return bool(earlier) and isinstance(earlier[-1], Remove)


StandingMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
TestStanding = pytest.mark.timeout(240)(StandingMachine.TestCase)

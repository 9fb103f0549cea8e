"""A collection's one writer: from writes to a transaction that is on disk, and then to an index that shows it."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import msgspec
import numpy as np

from gateway.engine import replay
from gateway.engine.lives import Starts
from gateway.engine.merge import Stored
from gateway.engine.plan import HeldBack, Kept, Plan, Planner, Turnover, WriteOutcome, plan
from gateway.engine.replay import Copy, Prepared, Proposal, Sequenced
from gateway.engine.store import Store
from gateway.engine.types import Applied, Done, NeedsVectors, Operation, Put, Vector, Write

EmbedHere: TypeAlias = Callable[[Sequence[str]], dict[str, Vector]]
"""Returns the vectors of those texts that can be embedded at once."""

_EMBEDDED_HERE = 16
"""More texts than these are embedded beside the commits of others."""


_FORESEEN = 65_536


def _embed_nothing(_: Sequence[str]) -> dict[str, Vector]:
    return {}


@dataclass(frozen=True, slots=True)
class Committed:
    """`outcomes` in the order of the writes; `applied` is None where nothing changed."""

    outcomes: Sequence[WriteOutcome]
    applied: Applied | None


class Shows(Protocol):
    """What makes a commit visible: an index."""

    def apply(self, turnover: Turnover, index_version: int) -> None: ...


class Writer:
    """All methods block, and belong to one thread at a time; they raise StorageUnavailable. `applying` is held while they
    run, and by whoever has to keep them off.

    A collection that is one node's alone commits. One that several nodes share prepares, and replays what has its place.
    """

    def __init__(self, store: Store, index: Shows, now: Callable[[], int], window_us: int) -> None:
        self.applying = threading.Lock()
        self.deaths = 0
        self._foreseen: dict[str, Stored] = {}
        self.embed_here: EmbedHere = _embed_nothing
        """What embeds a few texts in the commit's own thread: a lone one is spared the way to another and back."""
        self.kept = Kept()
        self.found = Kept()
        """Texts whose vectors were found among those of texts embedded before."""
        self._spec = store.spec
        self._store = store
        self._index = index
        self._now = now
        self._window_us = window_us

    @property
    def spared(self) -> Kept:
        """All texts that didn't have to be embedded."""
        return Kept(self.kept.texts + self.found.texts, self.kept.size_bytes + self.found.size_bytes)

    def commit(self, writes: Sequence[Write], *, with_vectors: bool = False) -> Committed:
        """Apply `writes` in order, each whole or not at all, in one transaction; what is done is on disk and searchable.

        If the transaction fails, nothing of any of them is there. `with_vectors` asks for the vectors of all changed
        documents, not only of those whose vector changed.
        """
        with self.applying:
            return self._commit(writes, with_vectors)

    def _commit(self, writes: Sequence[Write], with_vectors: bool) -> Committed:
        stored = self._load(writes, with_vectors)
        planned = plan(self._planner(writes, stored), writes)
        while self._find(writes, planned.outcomes):
            planned = plan(self._planner(writes, stored), writes)
        self.kept.include(planned.kept)
        self._foresee(planned, writes)
        return Committed(planned.outcomes, self._carry_out(planned, stored))

    def _find(self, writes: Sequence[Write], outcomes: Sequence[WriteOutcome]) -> bool:
        """Give `writes` the vectors they need that are kept from before, or computed at once; tell whether any are."""
        wanting = [
            (write, outcome.texts)
            for write, outcome in zip(writes, outcomes, strict=True)
            if isinstance(outcome, NeedsVectors | HeldBack) and outcome.texts
        ]
        texts = dict.fromkeys(text for _, texts in wanting for text in texts)
        found = self._store.embedded(list(texts)) if texts else {}
        vectors = {text: np.frombuffer(vector, np.float32) for text, vector in found.items()}
        for text in found:
            self.found.add(text)
        if 0 < len(texts) - len(found) <= _EMBEDDED_HERE:
            vectors |= self.embed_here([text for text in texts if text not in found])
        for write, needed in wanting:
            write.vectors.update((text, vectors[text]) for text in needed if text in vectors)
        return bool(vectors)

    def _foresee(self, planned: Plan, writes: Sequence[Write]) -> None:
        """Take over what was foreseen of documents that wait; forget what has come."""
        for write, outcome in zip(writes, planned.outcomes, strict=True):
            if isinstance(outcome, Done):
                for operation in write.operations:
                    self._foreseen.pop(operation.id, None)
        if len(self._foreseen) > _FORESEEN:
            self._foreseen.clear()  # left by writes that failed
        self._foreseen.update(planned.foreseen)

    def _planner(self, writes: Sequence[Write], stored: Mapping[str, Stored]) -> Planner:
        event_ids = [write.event_id for write in writes if write.event_id is not None]
        recorded = self._store.recorded(event_ids, self._now() - self._window_us) if event_ids else {}
        return Planner(
            self._spec,
            stored,
            recorded,
            self._store.index_version,
            self._store.version_floor,
            self._now,
            self._foreseen,
        )

    def _carry_out(self, plan: Plan, stored: Mapping[str, Stored]) -> Applied | None:
        at = self._now()
        turnover = plan.turnover(stored)
        self._store.commit(plan, turnover, stored, at, at - self._window_us)
        self.deaths += len(turnover.died)
        if plan.index_version < plan.first_index_version:
            return None
        self._index.apply(turnover, plan.index_version)
        return Applied(plan.first_index_version, plan.index_version, tuple(plan.events))

    def prepare(
        self, writes: Sequence[Write], origin: str, numbers: Sequence[int], *, with_vectors: bool = False
    ) -> Prepared:
        """Plan `writes` against the present state, and apply none of them: another decides on their place.

        `origin` and `numbers`, one for each, name them. What changes nothing but has an event id is recorded here.
        """
        with self.applying:
            stored = self._load(writes, with_vectors)
            planned, proposals, unchanged = self._proposed(writes, stored, origin, numbers)
            while self._find(writes, planned.outcomes):
                planned, proposals, unchanged = self._proposed(writes, stored, origin, numbers)
            self.kept.include(planned.kept)
            self._foresee(planned, writes)
            self._carry_out(unchanged, stored)
            return Prepared(self._store.index_version, planned.outcomes, proposals, planned, stored)

    def _proposed(
        self, writes: Sequence[Write], stored: Mapping[str, Stored], origin: str, numbers: Sequence[int]
    ) -> tuple[Plan, dict[int, Proposal], Plan]:
        """Plan `writes`; return the proposals of those that change something, and what the others are to be told again."""
        planner = self._planner(writes, stored)
        planned = planner.plan
        proposals: dict[int, Proposal] = {}
        unchanged = Plan(planned.first_index_version, planned.index_version)
        proposed: set[str] = set()
        for i, write in enumerate(writes):
            if write.event_id is not None and write.event_id in proposed:
                planner.hold(write)
                continue
            first = len(planned.events)
            planner.add(write)
            done = planned.outcomes[-1]
            if not isinstance(done, Done):
                continue
            if len(planned.events) > first:
                proposals[i] = replay.propose(write, origin, numbers[i], planned.events[first:], done)
                proposed |= {write.event_id} if write.event_id is not None else set()
            elif write.event_id in planned.recorded:
                unchanged.recorded[write.event_id] = done
        return planned, proposals, unchanged

    def confirm(self, prepared: Prepared) -> Applied:
        """Apply what was prepared, all of it, to the very state it was prepared against."""
        with self.applying:
            assert self._store.index_version == prepared.index_version, "nothing has changed since"
            applied = self._carry_out(prepared.plan, prepared.stored)
            assert applied is not None, "there is something to confirm"
            return applied

    def replay(self, batches: Sequence[Sequenced], *, with_vectors: bool = False) -> tuple[Applied, Sequence[Done]]:
        """Apply what has its place, right after what is there, in one transaction; return how each proposal ended."""
        with self.applying:
            ids = dict.fromkeys(entry.id for batch in batches for one in batch.proposals for entry in one.entries)
            stored = self._stored(list(ids), with_vectors=with_vectors)
            assert batches[0].first_index_version == self._store.index_version + 1, "batches are applied in order"
            planned, ended = replay.replay(batches, stored)
            applied = self._carry_out(planned, stored)
            assert applied is not None, "a batch has changes"
            return applied, ended

    def adopt(self, copy: Copy) -> Applied | None:
        """Take over a page of another node's net changes after this one's index_version; the same documents are then here.

        Until the last page some documents are as they were before, or missing.
        """
        with self.applying:
            stored = self._stored([one.document.id for one in copy.changes], with_vectors=True)
            planned = replay.adopt(copy.changes, copy.through, self._store.index_version, stored)
            planned.recorded.update(copy.recorded)
            self._store.raise_floor(copy.purged_through, copy.version_floor)
            return self._carry_out(planned, stored)

    def _load(self, writes: Sequence[Write], with_vectors: bool) -> dict[str, Stored]:
        """Return what the documents that `writes` name are now, with those vectors that planning them needs."""
        operations = [operation for write in writes for operation in write.operations]
        ids = list(dict.fromkeys(operation.id for operation in operations))
        if with_vectors:
            return self._stored(ids, with_vectors=True)
        stored = self._store.load(ids)
        wanted = {
            o.id: stored[o.id].document.vector_version
            for o in operations
            if o.id in stored and _wants_vector(o, stored[o.id])
        }
        return self._with_vectors(stored, wanted)

    def _stored(self, ids: Sequence[str], *, with_vectors: bool) -> dict[str, Stored]:
        stored = self._store.load(ids)
        if not with_vectors:
            return stored
        return self._with_vectors(stored, {i: one.document.vector_version for i, one in stored.items()})

    def _with_vectors(self, stored: dict[str, Stored], wanted: Mapping[str, int | None]) -> dict[str, Stored]:
        blobs = self._store.vectors([label for label in wanted.values() if label is not None])
        for document_id, label in wanted.items():
            if label is not None:
                stored[document_id] = msgspec.structs.replace(stored[document_id], vector=blobs[label])
        return stored

    @property
    def term(self) -> int:
        """The term in which nodes agreed on what is stored; 0 where there is one node."""
        return self._store.term

    @property
    def starts(self) -> Starts:
        """The terms there were up to then, with the index_versions they began after."""
        return self._store.starts

    def begin_term(self, term: int, starts: Starts) -> None:
        with self.applying:
            self._store.begin_term(term, starts)


def _wants_vector(operation: Operation, stored: Stored) -> bool:
    """Tell whether an operation needs the stored vector: one that may bring an equal one."""
    if not isinstance(operation, Put) or operation.vector is None:
        return False
    return stored.vector_crc == zlib.crc32(operation.vector.data)

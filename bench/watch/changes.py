"""Documents, and commits of changes to them that hold what watches find hard: lists that are taken apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.engine import data
from bench.engine.data import Matrix
from bench.watch.exact import ANY, NOWHERE, Asked, Corpus, Places, nearest
from gateway.engine.types import Applied, Change, Document, EventType, Source

GROUPS = 8
"""A document's metadata name one of so many groups; filters ask for one."""
TAKEN, REGROUPED, REVIVED, MOVED = 2, 16, 2, 104
SIZE = 3 * TAKEN + REGROUPED + REVIVED + MOVED
MIX = (
    f"of {SIZE} changes {3 * TAKEN} are of the documents nearest to one watch ({TAKEN} deleted, {TAKEN} moved away,"
    f" {TAKEN} with another group), {MOVED} other documents move, {REGROUPED} change their group, {REVIVED} deleted ones"
    " are inserted anew"
)
SHARED, SHARING = 1 / 5, 20
"""So large a share of the watches are near documents that about so many others are near, too: what is asked often."""
_NOISE = 0.3


class World:
    """The movies' embeddings as documents d0, d1, …; a deleted one is NOWHERE until it is inserted anew."""

    def __init__(self, documents: int, rng: np.random.Generator) -> None:
        self._rng = rng
        rows = data.movies()[:documents]
        self.corpus = Corpus(rows, rng.integers(0, GROUPS, len(rows)))
        self.index_version = len(rows)
        self.documents = [
            Document(f"d{i}", 1, i + 1, i + 1, i + 1, Source.VECTOR, 0, _metadata(group), None)
            for i, group in enumerate(self.corpus.groups.tolist())
        ]

    @property
    def ids(self) -> list[str]:
        return [document.id for document in self.documents]

    def commit(self, focus: Asked, each: int = SIZE) -> list[Applied]:
        """Change SIZE documents, in random order; return commits of `each` of the changes. `focus` is the one watch."""
        near = nearest(focus, self.corpus, 3 * TAKEN)[0]
        self._rng.shuffle(near)
        deleted, away, regrouped = near.reshape(3, TAKEN)
        there = self._rng.permutation(np.flatnonzero(self.corpus.groups != NOWHERE))
        gone = self._rng.permutation(np.flatnonzero(self.corpus.groups == NOWHERE))[:REVIVED]
        others = np.setdiff1d(there[: 2 * SIZE], near, assume_unique=True)
        # As long as too few are deleted, more move.
        others = self._rng.permutation(others)[: SIZE - len(near) - len(gone)]
        moving = np.concatenate([away, gone, others[REGROUPED:]])
        rows = data.noisy(self.corpus.rows[self._rng.choice(there, len(moving))], self._rng, _NOISE)
        todo: list[tuple[int, Matrix | None]] = [*zip(moving.tolist(), rows, strict=True)]
        todo += [(at, None) for at in (*deleted.tolist(), *regrouped.tolist(), *others[:REGROUPED].tolist())]
        leaving = set(deleted.tolist())
        changes = [self._change(*todo[i], delete=todo[i][0] in leaving) for i in self._rng.permutation(len(todo))]
        return [_applied(changes[start : start + each]) for start in range(0, len(changes), each)]

    def _change(self, at: int, row: Matrix | None, *, delete: bool) -> Change:
        old = self.documents[at]
        rows, groups = self.corpus.rows, self.corpus.groups
        self.index_version += 1
        version: int | None = old.vector_version if row is None else self.index_version
        if delete:
            groups[at], version = NOWHERE, None
        elif row is not None:
            rows[at] = row
            groups[at] = self._rng.integers(0, GROUPS) if old.deleted else groups[at]
        else:
            groups[at] = (groups[at] + self._rng.integers(1, GROUPS)) % GROUPS
        metadata = old.metadata if delete else _metadata(int(groups[at]))
        created = self.index_version if old.deleted else old.created
        new = Document(old.id, old.version + 1, self.index_version, created, version, Source.VECTOR, 0, metadata, None)
        self.documents[at] = new
        kind = EventType.DELETE if delete else EventType.INSERT if old.deleted else EventType.UPDATE
        return Change(kind, new, None if old.deleted else old.metadata, None if delete else rows[at].tobytes())


def queries(world: World, count: int, rng: np.random.Generator) -> Asked:
    """Return queries near documents; a quarter of them want a group, and the first ones share topics."""
    rows = world.corpus.rows
    groups: Places = rng.integers(0, GROUPS, count)
    groups[rng.random(count) >= 1 / 4] = ANY
    shared = round(count * SHARED)
    topics = rng.integers(0, len(rows), max(1, shared // SHARING))
    near = np.concatenate([rng.choice(topics, shared), rng.integers(0, len(rows), count - shared)])
    return Asked(data.noisy(rows[near], rng), groups)


def _applied(changes: Sequence[Change]) -> Applied:
    first, last = changes[0].document.index_version, changes[-1].document.index_version
    return Applied(first, last, tuple(changes))


def _metadata(group: int) -> str:
    return f'{{"group":{group}}}'

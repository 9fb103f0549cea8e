"""The values of live queries: what is watched, what a search found, what has changed."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

import msgspec

from gateway.engine.filter import Filter
from gateway.engine.types import Document, Hit, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """A standing query: the `k` documents nearest to `query` (checked, not yet made comparable).

    Documents that score less than `min_score` don't count, nor do `excluded` ids. That set isn't copied: it is read with
    each change, and whoever adds to it moves the watch too.
    """

    query: Vector
    k: int
    where: Filter | None = None
    min_score: float = -math.inf
    excluded: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Nearest:
    """What a search for a watch found as of `index_version`, best first.

    `complete` says that no other document fits the watch: fewer were found than were asked for. Hits that bring their
    vectors are scored anew, as changes are, so that equal vectors score the same to the last bit.
    """

    index_version: int
    hits: Sequence[Hit]
    complete: bool


@dataclass(frozen=True, slots=True)
class Affected:
    """What a commit meant for the watches, by their numbers.

    Those of `changed` may have a difference. Those of `short` have lost so many documents that their top k isn't known:
    they are to be refilled, and are named once.
    """

    changed: Sequence[int] = ()
    short: Sequence[int] = ()


class Ranked(msgspec.Struct, frozen=True):
    """A document of an answer; the nearest has rank 1."""

    document: Document
    score: float
    rank: int


class Difference(msgspec.Struct, frozen=True):
    """What turns the top k as last told into the present one: apply it, then sort by score, descending, and id.

    `changed` have another score or version than was told.
    """

    added: Sequence[Ranked] = ()
    changed: Sequence[Ranked] = ()
    removed: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

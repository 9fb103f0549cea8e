"""What watches were told, and how what they show now differs from it, many rows at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from gateway.live.documents import NOBODY, Documents
from gateway.live.rows import Flags, Floats, Integers, Numbers, Rows
from gateway.live.types import Difference, Ranked

_CELLS = 1 << 18
"""How many pairs of what was told and what is shown are compared at a time."""


def shown(rows: Rows, at: Integers) -> Numbers:
    """Return the top k of rows, NOBODY where there are fewer."""
    size = rows.told_numbers.shape[1]
    numbers: Numbers = rows.numbers[at, :size]
    numbers[np.arange(size) >= rows.k[at, np.newaxis]] = NOBODY
    return numbers


def tell(rows: Rows, documents: Documents, at: Integers) -> None:
    """Take what rows show as told."""
    numbers = shown(rows, at)
    rows.told_numbers[at] = numbers
    rows.told_scores[at] = rows.scores[at, : numbers.shape[1]]
    rows.told_versions[at] = documents.versions[numbers]


def differences(rows: Rows, documents: Documents, at: Integers) -> dict[int, Difference]:
    """Return how what rows show differs from what was told, by watch; those where it doesn't are left out."""
    step = max(1, _CELLS // rows.told_numbers.shape[1] ** 2)
    found: dict[int, Difference] = {}
    for start in range(0, len(at), step):
        found.update(_differences(rows, documents, at[start : start + step]))
    return found


def _differences(rows: Rows, documents: Documents, at: Integers) -> Iterator[tuple[int, Difference]]:
    now, before = shown(rows, at), rows.told_numbers[at]
    scores = rows.scores[at, : now.shape[1]]
    there = now != NOBODY
    same = now[:, :, np.newaxis] == before[:, np.newaxis, :]
    was = at[:, np.newaxis], same.argmax(axis=2)
    kept = there & (rows.told_numbers[was] == now)
    changed: Flags = kept & ((rows.told_scores[was] != scores) | (rows.told_versions[was] != documents.versions[now]))
    added: Flags = there & ~kept
    removed: Flags = (before != NOBODY) & ~same.any(axis=1)

    parts: defaultdict[int, tuple[list[Ranked], list[Ranked], list[str]]] = defaultdict(lambda: ([], [], []))
    for row, one in _ranked(documents, now, scores, added):
        parts[row][0].append(one)
    for row, one in _ranked(documents, now, scores, changed):
        parts[row][1].append(one)
    for row, number in zip(np.nonzero(removed)[0].tolist(), before[removed].tolist(), strict=True):
        parts[row][2].append(documents[number].id)
    watches = rows.watches[at].tolist()
    return ((watches[row], Difference(*three)) for row, three in parts.items())


def _ranked(documents: Documents, numbers: Numbers, scores: Floats, which: Flags) -> Iterator[tuple[int, Ranked]]:
    at, places = np.nonzero(which)
    for row, number, score, rank in zip(
        at.tolist(), numbers[which].tolist(), scores[which].tolist(), (places + 1).tolist(), strict=True
    ):
        yield row, Ranked(documents[number], score, rank)

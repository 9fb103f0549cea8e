"""Putting what came near into rows, and taking out what is gone, many rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gateway.live.documents import NOBODY, Documents
from gateway.live.rows import Flags, Floats, Integers, Numbers, Rows

_CELLS = 1 << 18
"""How many places of rows are sorted at a time."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Documents for rows `at`, ascending; none is held by its row, save where it leaves too."""

    at: Integers
    numbers: Numbers
    scores: Floats


@dataclass(frozen=True, slots=True)
class Departures:
    """Places of rows `at`, ascending, to be emptied."""

    at: Integers
    places: Integers


def merge(rows: Rows, documents: Documents, arrivals: Arrivals, departures: Departures) -> tuple[Integers, Flags]:
    """Merge all into their rows; return these rows, and which of them have another top k now.

    Where a row overflows, its floor rises to the best of what it lets go.
    """
    affected = np.unique(np.concatenate([arrivals.at, departures.at]))
    changed = np.zeros(len(affected), np.bool_)
    most = int(np.bincount(arrivals.at - affected[0]).max()) if len(arrivals.at) else 0
    step = max(1, _CELLS // (rows.width + most))
    for start in range(0, len(affected), step):
        part = affected[start : start + step]
        changed[start : start + step] = _merge(rows, documents, part, _of(arrivals, part), _without(departures, part))
    return affected, changed


def _of(arrivals: Arrivals, part: Integers) -> Arrivals:
    cut = slice(*np.searchsorted(arrivals.at, [part[0], part[-1] + 1]))
    return Arrivals(arrivals.at[cut], arrivals.numbers[cut], arrivals.scores[cut])


def _without(departures: Departures, part: Integers) -> Departures:
    cut = slice(*np.searchsorted(departures.at, [part[0], part[-1] + 1]))
    return Departures(departures.at[cut], departures.places[cut])


def _merge(rows: Rows, documents: Documents, part: Integers, arrivals: Arrivals, departures: Departures) -> Flags:
    width = rows.width
    into = np.searchsorted(part, arrivals.at)
    counts = np.bincount(into, minlength=len(part))
    places = width + np.arange(len(into)) - (np.cumsum(counts) - counts)[into]
    numbers = np.full((len(part), width + int(counts.max())), NOBODY, np.int32)
    scores = np.full(numbers.shape, -np.inf, np.float32)
    numbers[:, :width] = rows.numbers[part]
    scores[:, :width] = rows.scores[part]
    emptied = np.searchsorted(part, departures.at)
    numbers[emptied, departures.places] = NOBODY
    scores[emptied, departures.places] = -np.inf
    numbers[into, places] = arrivals.numbers
    scores[into, places] = arrivals.scores

    order = np.argsort(-scores, axis=1, kind="stable")
    numbers = np.take_along_axis(numbers, order, 1)
    scores = np.take_along_axis(scores, order, 1)
    _settle(numbers, scores, documents)

    top = rows.told_numbers.shape[1]
    differs = (numbers[:, :top] != rows.numbers[part, :top]) | (scores[:, :top] != rows.scores[part, :top])
    changed: Flags = (differs & (np.arange(top) < rows.k[part, np.newaxis])).any(axis=1)
    rows.numbers[part] = numbers[:, :width]
    rows.scores[part] = scores[:, :width]
    if numbers.shape[1] > width:
        over = np.flatnonzero(numbers[:, width] != NOBODY)
        rows.floors[part[over]] = scores[over, width]
        rows.floor_documents[part[over]] = numbers[over, width]
        rows.least[part[over]] = np.maximum(scores[over, width], rows.min_scores[part[over]])
    return changed


def _settle(numbers: Numbers, scores: Floats, documents: Documents) -> None:
    """Bring documents that score the same into the order of their ids."""
    equal = (scores[:, 1:] == scores[:, :-1]) & (numbers[:, 1:] != NOBODY)
    rows, places = np.nonzero(equal)
    if not len(rows):
        return
    apart = (rows[1:] != rows[:-1]) | (places[1:] != places[:-1] + 1)
    firsts = np.flatnonzero(np.concatenate([[True], apart]))
    lasts = np.flatnonzero(np.concatenate([apart, [True]]))
    for row, first, last in zip(rows[firsts].tolist(), places[firsts].tolist(), places[lasts].tolist(), strict=True):
        run = slice(first, last + 2)
        numbers[row, run] = sorted(numbers[row, run].tolist(), key=lambda number: documents[number].id)

"""Which items are interacted with lately, by all users together, and which are new.

Decay is forward (Cormode, Shkapenyuk, Srivastava, Xu: "Forward Decay", ICDE 2009): what is added grows with its time
instead of all that is there shrinking, so that an event costs one addition, and late ones need no case of their own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import repeat

import numpy as np
import numpy.typing as npt

_US = 1e6
_LONGEST_EXPONENT = 64.0
"""In times of tau, before the counts are brought back to a new landmark."""


@dataclass(frozen=True, slots=True)
class Attention:
    """What Popularity remembers. `capacity` bounds the items counted, `arrivals` the new ones.

    At the bound the least counted go, a fifth of them at once, and the oldest arrivals. A new item counts like
    `arrival_weight` of interactions when it comes, and decays like them; no data here could tell how much is good.
    """

    tau_s: float = 2 * 86_400.0
    capacity: int = 4_096
    arrivals: int = 64
    arrival_weight: float = 0.5


class Popularity:
    """Decayed counts of interactions by item. One task owns it. Times are microseconds since the epoch."""

    def __init__(self, attention: Attention | None = None) -> None:
        self._attention = attention or Attention()
        self._landmark: int | None = None
        self._arrived: dict[str, int] = {}
        self._ids: list[str] = []
        self._places: dict[str, int] = {}
        # What an item has counted, and what being new counts, as of the landmark, by its place. The last is nobody's.
        self._counted = np.zeros(self.capacity + 3)
        self._novel = np.zeros(self.capacity + 3)
        self._counting = 0

    def __len__(self) -> int:
        return self._counting

    @property
    def capacity(self) -> int:
        """The largest number of items that are counted."""
        return self._attention.capacity + self._attention.arrivals

    def copy(self) -> Popularity:
        """Return another one that counts the same, for another task."""
        other = copy.copy(self)
        mutable = {
            name: value.copy() for name, value in vars(self).items() if isinstance(value, dict | list | np.ndarray)
        }
        vars(other).update(mutable)
        return other

    def add(self, item_id: str, weight: float, at: int) -> None:
        """Count an interaction; those that speak against an item (`weight` below 0) are none."""
        if weight <= 0 or (grown := weight * self._growth(at)) == 0.0:
            return
        place = self._place(item_id)
        self._counting += self._counted[place] == 0.0
        self._counted[place] += grown
        if self._counting > self._attention.capacity:
            self._shed()

    def arrive(self, item_id: str, at: int) -> None:
        """Note that an item is new."""
        growth = self._growth(at)
        self._arrived[item_id] = at
        self._novel[self._place(item_id)] = self._attention.arrival_weight * growth
        if len(self._arrived) > self._attention.arrivals:
            oldest = min(self._arrived, key=lambda one: (self._arrived[one], one))
            del self._arrived[oldest]
            self._novel[self._places[oldest]] = 0.0
            self._release(oldest)

    def remove(self, item_id: str) -> None:
        """Forget an item that is no more."""
        self._arrived.pop(item_id, None)
        if item_id in self._places:
            self._uncount(item_id)
            self._novel[self._places[item_id]] = 0.0
            self._release(item_id)

    def count(self, item_id: str, now: int) -> float:
        """Return what the item counts as of `now`."""
        return float(self.counts((item_id,), now)[0])

    def counts(self, item_ids: Sequence[str], now: int) -> npt.NDArray[np.float64]:
        """Return what each item counts as of `now`."""
        places = np.fromiter(map(self._places.get, item_ids, repeat(-1)), np.int64, len(item_ids))
        counted: npt.NDArray[np.float64] = (self._counted[places] + self._novel[places]) * self._shrink(now)
        return counted

    def top(self, limit: int, now: int) -> list[tuple[str, float]]:
        """Return the items that count most as of `now`, with their counts, largest first (ties by id)."""
        size = len(self._ids)
        counts = (self._counted[:size] + self._novel[:size]) * self._shrink(now)
        least = np.partition(counts, -limit)[-limit] if 0 < limit < size else 0.0
        places = np.flatnonzero(counts >= least)
        found = sorted(zip((-counts[places]).tolist(), map(self._ids.__getitem__, places.tolist()), strict=True))
        return [(item_id, -count) for count, item_id in found[:limit]]

    def _place(self, item_id: str) -> int:
        place = self._places.setdefault(item_id, len(self._ids))
        if place == len(self._ids):
            self._ids.append(item_id)
        return place

    def _uncount(self, item_id: str) -> None:
        place = self._places[item_id]
        self._counting -= self._counted[place] != 0.0
        self._counted[place] = 0.0

    def _release(self, item_id: str) -> None:
        """Give up an item's place if nothing stands there; the last one takes it."""
        place = self._places[item_id]
        if self._counted[place] or self._novel[place]:
            return
        del self._places[item_id]
        last = self._ids.pop()
        if last != item_id:
            self._ids[place], self._places[last] = last, place
            for values in (self._counted, self._novel):
                values[place], values[len(self._ids)] = values[len(self._ids)], 0.0

    def _growth(self, at: int) -> float:
        if self._landmark is None:
            self._landmark = at
        if self._ages(at - self._landmark) > _LONGEST_EXPONENT:
            shrink = self._shrink(at)
            self._counted *= shrink
            self._novel *= shrink
            self._landmark = at
            self._counting = int(np.count_nonzero(self._counted))
            for item_id in list(self._ids):
                if not self._novel[self._places[item_id]]:
                    self._arrived.pop(item_id, None)
                self._release(item_id)
        return math.exp(self._ages(at - self._landmark))

    def _shrink(self, now: int) -> float:
        if self._landmark is None:
            return 0.0
        return math.exp(-max(self._ages(now - self._landmark), -_LONGEST_EXPONENT))

    def _ages(self, span_us: int) -> float:
        return span_us / (self._attention.tau_s * _US)

    def _shed(self) -> None:
        surplus = max(1, self._attention.capacity // 5)
        counted = ((self._counted[self._places[one]], one) for one in self._ids if self._counted[self._places[one]])
        for _, item_id in nsmallest(surplus, counted):
            self._uncount(item_id)
            self._release(item_id)

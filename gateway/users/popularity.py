"""Which items are interacted with lately, by all users together, and which are new.

Decay is forward (Cormode, Shkapenyuk, Srivastava, Xu: "Forward Decay", ICDE 2009): what is added grows with its time
instead of all that is there shrinking, so that an event costs one addition, and late ones need no case of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest

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
        self._counts: dict[str, float] = {}
        self._arrived: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def capacity(self) -> int:
        """The largest number of items that are counted."""
        return self._attention.capacity + self._attention.arrivals

    def add(self, item_id: str, weight: float, at: int) -> None:
        """Count an interaction; those that speak against an item (`weight` below 0) are none."""
        if weight > 0:
            grown = weight * self._growth(at)
            self._counts[item_id] = self._counts.get(item_id, 0.0) + grown
            if len(self._counts) > self._attention.capacity:
                self._shed()

    def arrive(self, item_id: str, at: int) -> None:
        """Note that an item is new."""
        self._arrived[item_id] = at
        if len(self._arrived) > self._attention.arrivals:
            del self._arrived[min(self._arrived, key=lambda one: (self._arrived[one], one))]

    def remove(self, item_id: str) -> None:
        """Forget an item that is no more."""
        self._counts.pop(item_id, None)
        self._arrived.pop(item_id, None)

    def count(self, item_id: str, now: int) -> float:
        """Return what the item counts as of `now`."""
        return self._counts.get(item_id, 0.0) * self._shrink(now) + self._novelty(item_id, now)

    def counts(self, item_ids: Sequence[str], now: int) -> npt.NDArray[np.float64]:
        """Return what each item counts as of `now`."""
        grown = np.fromiter((self._counts.get(item_id, 0.0) for item_id in item_ids), np.float64, len(item_ids))
        counted = grown * self._shrink(now)
        if not self._arrived.keys().isdisjoint(item_ids):
            counted += [self._novelty(item_id, now) for item_id in item_ids]
        return counted

    def top(self, limit: int, now: int) -> list[tuple[str, float]]:
        """Return the items that count most as of `now`, with their counts, largest first (ties by id)."""
        counts = np.fromiter(self._counts.values(), np.float64, len(self._counts))
        least = np.partition(counts, -limit)[-limit] if 0 < limit < len(counts) else 0.0
        ids, shrink = list(self._counts), self._shrink(now)
        found = {ids[i]: float(counts[i]) * shrink for i in np.flatnonzero(counts >= least).tolist()}
        for item_id in self._arrived:
            found[item_id] = self.count(item_id, now)
        return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]

    def _growth(self, at: int) -> float:
        if self._landmark is None:
            self._landmark = at
        if self._ages(at - self._landmark) > _LONGEST_EXPONENT:
            shrink = self._shrink(at)
            self._counts = dict(self._brought(shrink))
            self._landmark = at
        return math.exp(self._ages(at - self._landmark))

    def _brought(self, shrink: float) -> Iterator[tuple[str, float]]:
        for item_id, counted in self._counts.items():
            if counted * shrink > 0.0:
                yield item_id, counted * shrink

    def _shrink(self, now: int) -> float:
        if self._landmark is None:
            return 0.0
        return math.exp(-max(self._ages(now - self._landmark), -_LONGEST_EXPONENT))

    def _novelty(self, item_id: str, now: int) -> float:
        at = self._arrived.get(item_id)
        return 0.0 if at is None else self._attention.arrival_weight * math.exp(-self._ages(max(0, now - at)))

    def _ages(self, span_us: int) -> float:
        return span_us / (self._attention.tau_s * _US)

    def _shed(self) -> None:
        surplus = max(1, self._attention.capacity // 5)
        for item_id, _ in nsmallest(surplus, self._counts.items(), key=lambda pair: (pair[1], pair[0])):
            del self._counts[item_id]

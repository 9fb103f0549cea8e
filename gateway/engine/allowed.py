"""Which vectors a filter allows, kept between searches.

To evaluate a filter over a whole collection takes far longer than a search. So the labels it allows are kept, and
brought up to date with the documents that changed since: a range of the store.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.engine.filter import Filter
from gateway.engine.reader import Reader
from gateway.engine.types import Labels

_CONSOLIDATE = 1024
_BLOAT = 4096
_MAX_BYTES = 32 << 20
_CHANGE_BYTES = 100
_ENTRY_BYTES = 500


@dataclass(frozen=True, slots=True)
class Allowed:
    """The labels a filter allows as of `index_version`: ascending `base`, save what `changed` says.

    Dead ones may be among them: what has died isn't found anyway. `evaluated` is how many there were when the filter was
    last evaluated over the whole collection.
    """

    base: Labels
    changed: dict[int, bool]
    index_version: int
    evaluated: int

    @property
    def size_bytes(self) -> int:
        return self.base.nbytes + _CHANGE_BYTES * len(self.changed) + _ENTRY_BYTES

    @property
    def bloated(self) -> bool:
        """Whether so many labels have been added that most may be dead."""
        return len(self) > 2 * self.evaluated + _BLOAT

    def __len__(self) -> int:
        return len(self.base) + len(self.changed)

    def contains(self, labels: Labels) -> npt.NDArray[np.bool_]:
        """Tell of each of labels[n] whether it is allowed."""
        inside = _among(labels, self.base)
        if self.changed:
            changed = self.changed
            for i, label in enumerate(labels.tolist()):
                if label in changed:
                    inside[i] = changed[label]
        return inside

    def labels(self) -> Labels:
        """Return the allowed labels, ascending."""
        if not self.changed:
            return self.base
        touched = np.fromiter(self.changed, np.int64)
        inside = np.array([label for label, fits in self.changed.items() if fits], np.int64)
        return np.union1d(self.base[~np.isin(self.base, touched)], inside)

    def after(self, changes: Iterable[tuple[int, str]], where: Filter, index_version: int) -> Allowed:
        """Return the state at `index_version`; `changes` are the labels and metadata of what changed until then."""
        changed = self.changed | {label: where.matches(msgspec.json.decode(text)) for label, text in changes}
        after = Allowed(self.base, changed, index_version, self.evaluated)
        return Allowed(after.labels(), {}, index_version, self.evaluated) if len(changed) > _CONSOLIDATE else after


def _among(labels: Labels, ascending: Labels) -> npt.NDArray[np.bool_]:
    if not len(ascending):
        return np.zeros(len(labels), np.bool_)
    at = np.searchsorted(ascending, labels)
    at[at == len(ascending)] = 0
    found: npt.NDArray[np.bool_] = ascending[at] == labels
    return found


class AllowedCache:
    """The sets of the filters used last, bounded in bytes. From any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._kept: OrderedDict[bytes, Allowed] = OrderedDict()
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        """About how much memory the sets and their filters take."""
        return self._bytes

    def get(self, where: Filter, reader: Reader, index_version: int, held: Allowed | None = None) -> Allowed:
        """Return what `where` allows as of `index_version`, the state that `reader` is pinned to.

        `held` is what the caller got for an earlier one: others may have brought the kept set beyond `index_version`.
        """
        with self._mutex:
            known = [one for one in (self._kept.get(where.key), held) if one and one.index_version <= index_version]
        allowed = max(known, key=lambda one: one.index_version, default=None)
        if allowed is None or allowed.bloated:
            labels = reader.matching(where)
            allowed = Allowed(labels, {}, index_version, len(labels))
        elif allowed.index_version < index_version:
            allowed = allowed.after(reader.metadata_after(allowed.index_version), where, index_version)
        self._keep(where.key, allowed)
        return allowed

    def _keep(self, key: bytes, allowed: Allowed) -> None:
        with self._mutex:
            known = self._kept.pop(key, None)
            if known is not None:
                self._bytes -= known.size_bytes + len(key)
                allowed = max(known, allowed, key=lambda one: one.index_version)
            self._kept[key] = allowed
            self._bytes += allowed.size_bytes + len(key)
            while self._bytes > _MAX_BYTES:
                old, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.size_bytes + len(old)

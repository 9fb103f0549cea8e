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
_MAX_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Allowed:
    """The labels a filter allows as of `index_version`: ascending `base`, save what `changed` says. Dead ones may be among
    them: what has died isn't found anyway."""

    base: Labels
    changed: dict[int, bool]
    index_version: int

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
        after = Allowed(self.base, changed, index_version)
        return Allowed(after.labels(), {}, index_version) if len(changed) > _CONSOLIDATE else after


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

    def get(self, where: Filter, reader: Reader, index_version: int, held: Allowed | None = None) -> Allowed:
        """Return what `where` allows as of `index_version`, the state that `reader` sees (or one after it, if unpinned).

        `held` is what the caller got for an earlier one: others may have brought the kept set beyond `index_version`.
        """
        with self._mutex:
            known = [one for one in (self._kept.get(where.key), held) if one and one.index_version <= index_version]
        if not known:
            allowed = Allowed(reader.matching(where), {}, index_version)
        else:
            newest = max(known, key=lambda one: one.index_version)
            allowed = newest
            if newest.index_version < index_version:
                allowed = newest.after(reader.metadata_after(newest.index_version), where, index_version)
        self._keep(where.key, allowed)
        return allowed

    def _keep(self, key: bytes, allowed: Allowed) -> None:
        with self._mutex:
            known = self._kept.pop(key, None)
            if known is not None:
                self._bytes -= known.base.nbytes
                allowed = max(known, allowed, key=lambda one: one.index_version)
            self._kept[key] = allowed
            self._bytes += allowed.base.nbytes
            while self._bytes > _MAX_BYTES and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.base.nbytes

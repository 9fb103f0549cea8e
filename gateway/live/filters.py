"""The filters of watches, by number, and what they say of a commit: each judges each document once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.engine.filter import All, Compare, Condition, Filter, kind, reached
from gateway.live.batch import Batch
from gateway.live.product import Part

Numbers: TypeAlias = npt.NDArray[np.int64]

Path: TypeAlias = tuple[str, ...]
Term: TypeAlias = tuple[type | None, Any]
"""A scalar and its kind: true and 1 are two terms, 1 and 1.0 are one."""

MANY = 64
"""So many watches with one filter are compared with what may come into it only."""

_UNKNOWN, _FITS_NOT, _FITS = 0, 1, 2


class Filters:
    """Numbers for filters; equal ones share one.

    Many filters ask for a value, each for its own: those that a document can fit are looked up by its values.
    """

    def __init__(self) -> None:
        self._numbers: dict[Filter, int] = {}
        self._uses: list[int] = []
        self._free: list[int] = []
        self._by_term: dict[Path, dict[Term, set[int]]] = {}
        self._others: set[int] = set()
        self.by_number: list[Filter | None] = []

    def __len__(self) -> int:
        return len(self.by_number)

    def take(self, where: Filter) -> int:
        """Return the number of a filter; it keeps it until it was released as often as it was taken."""
        number = self._numbers.get(where)
        if number is None:
            number = self._free.pop() if self._free else len(self.by_number)
            if number == len(self.by_number):
                self.by_number.append(None)
                self._uses.append(0)
            self.by_number[number] = where
            self._numbers[where] = number
            self._members(where).add(number)
        self._uses[number] += 1
        return number

    def release(self, number: int) -> None:
        self._uses[number] -= 1
        if not self._uses[number]:
            where = self.by_number[number]
            assert where is not None, "a filter in use is there"
            del self._numbers[where]
            self._forget(where, number)
            self.by_number[number] = None
            self._free.append(number)

    def _members(self, where: Filter) -> set[int]:
        needed = _needed(where.condition)
        if needed is None:
            return self._others
        return self._by_term.setdefault(needed.path, {}).setdefault(_term(needed.value), set())

    def _forget(self, where: Filter, number: int) -> None:
        members = self._members(where)
        members.discard(number)
        needed = _needed(where.condition)
        if needed is not None and not members:
            del self._by_term[needed.path][_term(needed.value)]
            if not self._by_term[needed.path]:
                del self._by_term[needed.path]

    def possible(self, metadata: dict[str, Any]) -> list[int]:
        """Return the numbers of all filters that may let a document pass."""
        found = [*self._others]
        for path, by_term in self._by_term.items():
            for term in _terms(metadata, path):
                found += by_term.get(term, ())
        return found


def _needed(condition: Condition) -> Compare | None:
    """Return an equality without which the condition doesn't hold."""
    for part in condition.parts if isinstance(condition, All) else (condition,):
        if isinstance(part, Compare) and part.operator == "=":
            return part
    return None


def _term(value: Any) -> Term:
    return kind(value), value


def _terms(metadata: dict[str, Any], path: Path) -> set[Term]:
    terms: set[Term] = set()
    for there in reached(metadata, path):
        terms.update(
            _term(value)
            for value in (there if isinstance(there, list) else (there,))
            if not isinstance(value, dict | list)
        )
    return terms


class Verdicts:
    """Which documents of a batch fit which filters, and which may come into them. Evaluated where somebody asks."""

    def __init__(self, filters: Filters, batch: Batch) -> None:
        self._filters = filters.by_number
        self._columns = batch.columns
        self._fits = np.full((len(filters), len(batch.columns)), _FITS_NOT, np.int8)
        self._metadata: dict[str, Any] = {}
        for number, column in enumerate(batch.columns if len(filters) else ()):
            if not column.document.deleted:
                self._fits[filters.possible(self._decoded(column.document.metadata)), number] = _UNKNOWN
        self._enters = self._fits.copy()

    def possible(self, count: int) -> npt.NDArray[np.bool_]:
        """Tell for each filter which of the first `count` columns may come into it, as far as is known without a test."""
        possible: npt.NDArray[np.bool_] = self._enters[:, :count] != _FITS_NOT
        return possible

    def fit(self, filters: Numbers, columns: Numbers) -> npt.NDArray[np.bool_]:
        """Tell for each pair of a filter's number and a column's whether that filter lets the document pass."""
        return _looked_up(self._fits, filters, columns, self._passes)

    def enter(self, filters: Numbers, columns: Numbers) -> npt.NDArray[np.bool_]:
        """Tell for each pair whether watches with that filter may have to take the document up."""
        return _looked_up(self._enters, filters, columns, self._comes_in)

    def _passes(self, number: int, column: int) -> bool:
        return self._matches(number, self._columns[column].document.metadata)

    def _comes_in(self, number: int, column: int) -> bool:
        before = self._columns[column].before
        if not self._passes(number, column):
            return False
        return self._columns[column].moved or before is None or not self._matches(number, before)

    def _matches(self, number: int, metadata: str) -> bool:
        where = self._filters[number]
        assert where is not None, "a filter in use is there"
        return where.matches(self._decoded(metadata))

    def _decoded(self, metadata: str) -> Any:
        decoded = self._metadata.get(metadata)
        if decoded is None:
            decoded = self._metadata[metadata] = msgspec.json.decode(metadata)
        return decoded


def parts(filters: Numbers, first: int, possible: npt.NDArray[np.bool_]) -> list[Part]:
    """Return which columns the rows from `first` on with these filters are to be compared with.

    Rows with a filter that many have are taken together. The others are compared with all columns, as many small products
    cost more than a large one, or with none.
    """
    counts = np.bincount(filters, minlength=len(possible))
    some = possible.any(axis=1)
    many = some & (counts >= MANY)
    found = [
        Part(np.flatnonzero(filters == one) + first, np.flatnonzero(possible[one])) for one in np.flatnonzero(many)
    ]
    others = np.flatnonzero((some & ~many)[filters]) + first
    return [*found, Part(others)] if len(others) else found


def _looked_up(
    table: npt.NDArray[np.int8], filters: Numbers, columns: Numbers, test: Callable[[int, int], bool]
) -> npt.NDArray[np.bool_]:
    """Look pairs up in a table of verdicts, after testing those not tested before."""
    pairs = filters * table.shape[1] + columns
    flat = table.reshape(-1)
    for pair in np.unique(pairs[flat[pairs] == _UNKNOWN]).tolist():
        flat[pair] = _FITS if test(*divmod(pair, table.shape[1])) else _FITS_NOT
    verdicts: npt.NDArray[np.bool_] = flat[pairs] == _FITS
    return verdicts

"""The standing queries of one collection, which are told when their top k changes instead of being asked again.

Each watch holds more than k documents, all those that are no further from its query than a floor. What comes nearer than
the floor is put in, what moves away or is deleted is taken out, and only when fewer than k are left is there a need to
search (Yi, Yu, Yang, Xia, Chen: Efficient maintenance of materialized top-k views, ICDE 2003). Which watches a commit
concerns is found by one matrix product of all queries with the vectors the commit brought.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

import numpy as np

from gateway.engine.types import Applied, Document, Metric
from gateway.live.batch import Batch
from gateway.live.documents import NOBODY, Documents
from gateway.live.filters import Filters, Verdicts
from gateway.live.rows import Integers
from gateway.live.shelf import NO_FILTER, Shelf
from gateway.live.types import Affected, Difference, Nearest, Ranked, Watch

MAX_K = 100

_SIZES = (5, 10, 20, 50, MAX_K)
_LEAST_WIDTH = 16
_WIDTHS_PER_K = 3


def wanted(k: int) -> int:
    """Return how many documents a search for a watch is to find, besides those the watch excludes."""
    return max(_LEAST_WIDTH, _WIDTHS_PER_K * _size(k))


def _size(k: int) -> int:
    assert 1 <= k <= MAX_K, "k was checked"
    return next(size for size in _SIZES if k <= size)


class Standing:
    """Belongs to one thread at a time, which for `apply` need not be the event loop's: the product leaves the GIL alone.

    It takes every commit of the collection, in order. A watch starts from a search, which may be of another moment:
    of a later one, or of an earlier one that `reaches` accepts. Then what was applied since is applied to it, or, as
    commits come that the search knew of already, passed over. So nothing is lost, and nothing counts twice.
    """

    def __init__(self, dimension: int, metric: Metric, index_version: int, log_bytes: int = 4 << 20) -> None:
        """Start at a collection's index_version; `log_bytes` of the latest commits are kept for searches under way."""
        self._dimension = dimension
        self._metric = metric
        self._log_bytes = log_bytes
        self._log: deque[Applied] = deque()
        self._logged_bytes = 0
        self._documents = Documents()
        self._filters = Filters()
        self._shelves: dict[tuple[int, bool], Shelf] = {}
        self._shelf_of: dict[int, Shelf] = {}
        self._last = 0
        self.index_version = index_version

    def __len__(self) -> int:
        return len(self._shelf_of)

    @property
    def wants_vectors(self) -> bool:
        """Whether commits are to bring the vectors of all documents they change, as `Collection.commit` can.

        A document whose metadata comes into a filter needs its vector. Where a change hasn't brought it, the watches with
        such a filter are short.
        """
        return any(shelf.filtered and len(shelf) for shelf in self._shelves.values())

    @property
    def size_bytes(self) -> int:
        """What the watches' arrays take."""
        return sum(shelf.rows.size_bytes for shelf in self._shelves.values())

    def reaches(self, index_version: int) -> bool:
        """Tell whether a watch can start from a search as of `index_version`. If not, search again: it was too slow."""
        if index_version >= self.index_version:
            return True
        for applied in reversed(self._log):
            if index_version >= applied.first_index_version:
                return False
            if index_version == applied.first_index_version - 1:
                return True
        return False

    def add(self, watch: Watch, nearest: Nearest) -> int:
        """Add a watch and return its number. Ask `waits` whether it has to be refilled at once, then for its `answer`.

        `nearest` are the `wanted(k)` nearest of the documents that its filter lets pass, excluded ones apart. (They may
        be among them, but then more have to be asked for.)
        """
        self._last += 1
        number = self._last
        self._shelf_of[number] = shelf = self._shelf(watch)
        shelf.add(number)
        self._ask(number, shelf, watch)
        self.refill(number, nearest)
        return number

    def move(self, number: int, watch: Watch, nearest: Nearest) -> None:
        """Change what a watch asks for, save k. Its difference is then from what it was told before it moved."""
        shelf, old = self._shelf(watch), self._shelf_of[number]
        if (where := old.filter_of(number)) != NO_FILTER:
            self._filters.release(where)
        if shelf is not old:
            shelf.take_over(number, old)
            self._shelf_of[number] = shelf
        self._ask(number, shelf, watch)
        self.refill(number, nearest)

    def _ask(self, number: int, shelf: Shelf, watch: Watch) -> None:
        shelf.ask(number, watch, NO_FILTER if watch.where is None else self._filters.take(watch.where))

    def _shelf(self, watch: Watch) -> Shelf:
        size, filtered = _size(watch.k), watch.where is not None
        shelf = self._shelves.get((size, filtered))
        if shelf is None:
            shelf = Shelf(self._dimension, self._metric, size, wanted(size), self._documents, filtered=filtered)
            self._shelves[size, filtered] = shelf
        return shelf

    def refill(self, number: int, nearest: Nearest) -> None:
        """Give a watch what a search found. Ask `waits` whether it is short again, and `differences` what has changed."""
        assert self.reaches(nearest.index_version), "the caller has asked whether the log goes back so far"
        shelf = self._shelf_of[number]
        shelf.fill(number, nearest)
        for applied in self._log:
            if applied.first_index_version > nearest.index_version:
                batch = Batch(applied, self._dimension, self._metric)
                shelf.apply(batch, Verdicts(self._filters, batch), self._known(batch), shelf.place(number))

    def waits(self, number: int) -> bool:
        """Tell whether a watch is to be refilled. Until then it has no difference, and its answer may be too short."""
        return self._shelf_of[number].waits(number)

    def remove(self, number: int) -> None:
        shelf = self._shelf_of.pop(number)
        if (where := shelf.filter_of(number)) != NO_FILTER:
            self._filters.release(where)
        shelf.remove(number)

    def shown(self, number: int) -> list[Document]:
        """Return the documents of a watch's top k, without taking them as told."""
        return self._shelf_of[number].shown(number)

    def answer(self, number: int) -> list[Ranked]:
        """Return a watch's top k, and take it as told."""
        return self._shelf_of[number].answer(number)

    def differences(self, numbers: Iterable[int]) -> dict[int, Difference]:
        """Return how the top ks of watches differ from what was told. Whoever passes them on calls `tell`.

        Watches without a difference, and those that wait, are left out. Many at once cost a tenth of what they do by
        themselves.
        """
        found: dict[int, Difference] = {}
        for shelf, some in self._by_shelf(numbers):
            found.update(shelf.differences(some))
        return found

    def tell(self, numbers: Iterable[int]) -> None:
        """Take the present top ks of watches as told."""
        for shelf, some in self._by_shelf(numbers):
            shelf.tell(some)

    def _by_shelf(self, numbers: Iterable[int]) -> Iterable[tuple[Shelf, list[int]]]:
        shelves: defaultdict[Shelf, list[int]] = defaultdict(list)
        for number in numbers:
            shelves[self._shelf_of[number]].append(number)
        return shelves.items()

    def apply(self, applied: Applied) -> Affected:
        """Apply the next commit; return the watches whose top k may differ, and those that are short."""
        assert applied.first_index_version == self.index_version + 1, "commits are applied without gaps"
        self.index_version = applied.index_version
        self._keep(applied)
        if not self._shelf_of:
            return Affected()
        batch = Batch(applied, self._dimension, self._metric)
        verdicts = Verdicts(self._filters, batch)
        known = self._known(batch)
        affected = [shelf.apply(batch, verdicts, known) for shelf in self._shelves.values() if len(shelf)]
        if self._documents.wants_sweep:
            self._documents.sweep(held for shelf in self._shelves.values() for held in shelf.held)
        return Affected(
            [number for one in affected for number in one.changed], [number for one in affected for number in one.short]
        )

    def _known(self, batch: Batch) -> Integers:
        """Return the numbers of a batch's documents, NOBODY for those no watch holds, and note the state of the others."""
        documents = (column.document for column in batch.columns)
        found = (
            NOBODY if self._documents.find(document.id) is None else self._documents.number(document)
            for document in documents
        )
        return np.fromiter(found, np.int64, len(batch.columns))

    def _keep(self, applied: Applied) -> None:
        self._log.append(applied)
        self._logged_bytes += _size_bytes(applied)
        while self._logged_bytes > self._log_bytes:
            self._logged_bytes -= _size_bytes(self._log.popleft())


def _size_bytes(applied: Applied) -> int:
    return sum(event.size_bytes for event in applied.events)

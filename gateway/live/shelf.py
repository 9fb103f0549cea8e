"""The watches of about the same k, filtered or not, and how a commit changes what they hold."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import numpy as np

from gateway.engine import vectors
from gateway.engine.types import Document, Hit, Metric
from gateway.live import filters, product, told
from gateway.live.batch import Batch
from gateway.live.documents import NOBODY, Documents
from gateway.live.filters import Verdicts
from gateway.live.merge import Arrivals, Departures, merge
from gateway.live.rows import Flags, Floats, Integers, Numbers, Rows
from gateway.live.types import Affected, Difference, Nearest, Ranked, Watch

_ROWS = 2048
NO_FILTER = -1


class Shelf:
    """`k` is the largest its watches may have; each holds up to `width` documents."""

    def __init__(
        self, dimension: int, metric: Metric, k: int, width: int, documents: Documents, *, filtered: bool
    ) -> None:
        self.filtered = filtered
        self.rows = Rows(dimension, k, width)
        self._metric = metric
        self._documents = documents
        self._places: dict[int, int] = {}
        self._excluded: dict[int, Set[str]] = {}
        self._newest = 0

    def __len__(self) -> int:
        return self.rows.count

    @property
    def held(self) -> Sequence[Numbers]:
        """The numbers of the documents that are in use, and NOBODY's."""
        used = slice(self.rows.count)
        return self.rows.numbers[used], self.rows.told_numbers[used], self.rows.floor_documents[used]

    def add(self, number: int) -> None:
        """Make a place for a watch; `fill` it next."""
        self._places[number] = self.rows.append(number)

    def remove(self, number: int) -> None:
        at = self._places.pop(number)
        self._excluded.pop(number, None)
        self.rows.remove(at)
        if at < self.rows.count:
            self._places[int(self.rows.watches[at])] = at

    def take_over(self, number: int, other: Shelf) -> None:
        """Add a watch from another shelf of the same k, with what it was told; `fill` it next."""
        self.add(number)
        at, there = self._places[number], other._places[number]
        for name in ("told_numbers", "told_scores", "told_versions"):
            getattr(self.rows, name)[at] = getattr(other.rows, name)[there]
        other.remove(number)

    def place(self, number: int) -> slice:
        """Return the span of one watch's row."""
        at = self._places[number]
        return slice(at, at + 1)

    def filter_of(self, number: int) -> int:
        return int(self.rows.filters[self._places[number]])

    def waits(self, number: int) -> bool:
        return bool(self.rows.waiting[self._places[number]])

    def ask(self, number: int, watch: Watch, where: int) -> None:
        """Set what a watch asks for; `fill` it next. `where` is its filter's number."""
        at, rows = self._places[number], self.rows
        (rows.queries[at],) = vectors.comparable(watch.query[np.newaxis], self._metric)
        rows.squared[at] = np.dot(rows.queries[at].astype(np.float64), rows.queries[at])
        rows.min_scores[at] = _up(watch.min_score)
        rows.k[at] = watch.k
        rows.filters[at] = where
        rows.excluding[at] = bool(watch.excluded)
        self._excluded.pop(number, None)
        if watch.excluded:
            self._excluded[number] = watch.excluded

    def fill(self, number: int, nearest: Nearest) -> None:
        """Hold what a search found, instead of what is held."""
        at, rows = self._places[number], self.rows
        hits, scores = nearest.hits, self._scores(at, nearest.hits)
        numbers = np.fromiter((self._documents.number(hit.document) for hit in hits), np.int32, len(hits))
        order = self._documents.order(numbers, scores)
        assert order or nearest.complete, "a search that finds nothing has found all there is"
        excluded = self._excluded.get(number, frozenset())
        held = [i for i in order if scores[i] >= rows.min_scores[at] and hits[i].document.id not in excluded]
        floor = held[rows.width] if len(held) > rows.width else None if nearest.complete else order[-1]
        held = held[: rows.width]
        rows.numbers[at] = NOBODY
        rows.numbers[at, : len(held)] = numbers[held]
        rows.scores[at] = -np.inf
        rows.scores[at, : len(held)] = scores[held]
        # Where the search went below min_score there is nothing more to find.
        known = floor is None or scores[floor] < rows.min_scores[at]
        rows.floors[at] = -np.inf if known else scores[floor]
        rows.floor_documents[at] = NOBODY if known else numbers[floor]
        rows.least[at] = max(rows.floors[at], rows.min_scores[at])
        rows.as_of[at] = nearest.index_version
        rows.waiting[at] = False
        self._newest = max(self._newest, nearest.index_version)
        self._short(np.array([at]))

    def _scores(self, at: int, hits: Sequence[Hit]) -> Floats:
        blobs = [hit.vector for hit in hits if hit.vector is not None]
        if not hits or len(blobs) < len(hits):
            return np.array([hit.score for hit in hits], np.float32)
        found = np.frombuffer(b"".join(blobs), np.float32).reshape(len(hits), -1)
        columns = vectors.comparable(found, self._metric)
        return product.score(self.rows, np.full(len(hits), at), columns, np.arange(len(hits)), self._metric)

    def apply(self, batch: Batch, verdicts: Verdicts, known: Integers, span: slice | None = None) -> Affected:
        """Apply a commit to the rows of `span` (None: all). `known` are the numbers of its documents, or NOBODY."""
        rows = self.rows
        span = span or slice(0, rows.count)
        at, places, columns = self._held(batch, known, span)
        arrivals = self._arrivals(batch, verdicts, known, span)
        gone = batch.replaced[columns]
        if self.filtered:
            stays = np.flatnonzero(~gone)
            gone[stays] = ~verdicts.fit(rows.filters[at[stays]], columns[stays])
        # What a watch shows of these has another version now, if it is shown at all.
        changed = [at[places < rows.k[at]]]
        lost = self._lost(batch, verdicts, span)
        if len(arrivals.at) or gone.any():
            merged, differ = merge(rows, self._documents, arrivals, Departures(at[gone], places[gone]))
            changed.append(merged[differ])
            lost = np.union1d(lost, self._short(merged))
        to_tell = np.unique(np.concatenate(changed))
        to_tell = to_tell[~rows.waiting[to_tell]]
        return Affected(rows.watches[to_tell].tolist(), rows.watches[lost].tolist())

    def _fresh(self, batch: Batch, at: Integers, columns: Integers) -> Flags | None:
        """Tell of which columns the searches that filled these rows didn't know; None where of all."""
        if self._newest < batch.first_index_version:
            return None
        fresh: Flags = batch.index_versions[columns] > self.rows.as_of[at]
        return fresh

    def _arrivals(self, batch: Batch, verdicts: Verdicts, known: Integers, span: slice) -> Arrivals:
        rows = self.rows
        if self.filtered:
            parts, scored = filters.parts(rows.filters[span], span.start, verdicts.possible(batch.scored)), batch.scored
        else:
            parts, scored = [product.Part(span)], batch.moved
        at, columns = product.near(rows, parts, batch.vectors[:scored], batch.squared[:scored], self._metric)
        if (fresh := self._fresh(batch, at, columns)) is not None:
            at, columns = at[fresh], columns[fresh]
        if self.filtered and len(at):
            enter = verdicts.enter(rows.filters[at], columns)
            at, columns = at[enter], columns[enter]
        if self._excluded:
            wanted = self._wanted(batch, at, columns)
            at, columns = at[wanted], columns[wanted]
        scores = product.score(rows, at, batch.vectors, columns, self._metric)
        enough = scores >= rows.least[at]
        for i in np.flatnonzero(enough & (scores == rows.floors[at])).tolist():
            floor = self._documents[rows.floor_documents[at[i]]]
            enough[i] = batch.columns[columns[i]].document.id <= floor.id
        at, columns = at[enough], columns[enough]
        for column in np.unique(columns[known[columns] == NOBODY]).tolist():
            known[column] = self._documents.number(batch.columns[column].document)
        return Arrivals(at, known[columns].astype(np.int32), scores[enough])

    def _wanted(self, batch: Batch, at: Integers, columns: Integers) -> Flags:
        """Tell which columns aren't excluded from these rows."""
        wanted = np.ones(len(at), np.bool_)
        for i in np.flatnonzero(self.rows.excluding[at]).tolist():
            excluded = self._excluded[int(self.rows.watches[at[i]])]
            wanted[i] = batch.columns[columns[i]].document.id not in excluded
        return wanted

    def _held(self, batch: Batch, known: Integers, span: slice) -> tuple[Integers, Integers, Integers]:
        """Return where rows hold the batch's documents: row, place in it, and column."""
        column_of = np.full(self._documents.capacity + 1, NOBODY, np.int64)
        there = np.flatnonzero(known != NOBODY)
        column_of[known[there]] = there
        wanted = column_of != NOBODY
        width = self.rows.width
        found = [np.empty(0, np.int64)]
        for start in range(span.start, span.stop if len(there) else span.start, _ROWS):
            # An index with "wrap" isn't checked, which is faster, and NOBODY is the last.
            held = np.take(wanted, self.rows.numbers[start : min(start + _ROWS, span.stop)], mode="wrap")
            found.append(np.flatnonzero(held) + start * width)
        at, places = np.divmod(np.concatenate(found), width)
        columns = column_of[self.rows.numbers[at, places]]
        if (fresh := self._fresh(batch, at, columns)) is not None:
            at, places, columns = at[fresh], places[fresh], columns[fresh]
        return at, places, columns

    def _lost(self, batch: Batch, verdicts: Verdicts, span: slice) -> Integers:
        """Give up on rows of which it can't be told what they should hold; return those not given up before."""
        if not batch.blind and self._newest < batch.first_index_version:
            return np.empty(0, np.int64)
        lost = np.zeros(span.stop - span.start, np.bool_)
        as_of = self.rows.as_of[span]
        if self._newest >= batch.first_index_version:
            # A search that saw half of a commit: none does.
            lost |= (batch.first_index_version <= as_of) & (as_of < batch.index_version)
        for column in batch.blind:
            if self.filtered:
                wheres = self.rows.filters[span]
                enters = verdicts.enter(wheres, np.full(len(wheres), column))
            else:
                enters = np.full(len(lost), batch.columns[column].moved)
            lost |= enters & (as_of < batch.index_versions[column])
        at = np.flatnonzero(lost) + span.start
        self.rows.floors[at] = self.rows.least[at] = np.inf
        return self._short(at)

    def _short(self, at: Integers) -> Integers:
        """Return those of rows `at` whose top k isn't known any more, and weren't known to wait for a refill."""
        rows = self.rows
        filled = np.count_nonzero(rows.numbers[at] != NOBODY, axis=1)
        floors = rows.floors[at]
        short = ~rows.waiting[at] & (((filled < rows.k[at]) & (floors > -np.inf)) | (floors == np.inf))
        found: Integers = at[short]
        rows.waiting[found] = True
        return found

    def shown(self, number: int) -> list[Document]:
        """Return the documents of the top k, best first."""
        at, rows = self._places[number], self.rows
        return [self._documents[one] for one in rows.numbers[at, : rows.k[at]].tolist() if one != NOBODY]

    def answer(self, number: int) -> list[Ranked]:
        """Return the top k, and take it as told."""
        at, rows = self._places[number], self.rows
        self.tell([number])
        shown = zip(rows.told_numbers[at].tolist(), rows.told_scores[at].tolist(), strict=True)
        return [
            Ranked(self._documents[one], score, rank) for rank, (one, score) in enumerate(shown, 1) if one != NOBODY
        ]

    def differences(self, numbers: Sequence[int]) -> dict[int, Difference]:
        """Return how top ks differ from what was told; those that don't, and those of watches that wait, are left out."""
        at = self._at(numbers)
        return told.differences(self.rows, self._documents, at[~self.rows.waiting[at]])

    def tell(self, numbers: Sequence[int]) -> None:
        """Take top ks as told."""
        told.tell(self.rows, self._documents, self._at(numbers))

    def _at(self, numbers: Sequence[int]) -> Integers:
        return np.fromiter((self._places[number] for number in numbers), np.int64, len(numbers))


def _up(score: float) -> np.float32:
    """Return the least float32 that isn't less."""
    with np.errstate(over="ignore"):
        rounded = np.float32(score)
    return rounded if math.isinf(rounded) or float(rounded) >= score else np.nextafter(rounded, np.float32(np.inf))

"""A commit as live queries see it: a column for each document, of what all its changes come to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gateway.engine import vectors
from gateway.engine.types import Applied, Change, Document, EventType, Metric


@dataclass(slots=True)
class Column:
    """The last state of a document, its vector where that is known, and its metadata before the commit (None: unknown).

    `moved` says that it was made, or got another vector, in the commit; `absent` that there was none before.
    """

    document: Document
    vector: bytes | None
    before: str | None
    absent: bool
    moved: bool

    @property
    def may_enter(self) -> bool:
        """Whether watches that don't hold it may have to take it up."""
        document = self.document
        return not document.deleted and (self.moved or self.before != document.metadata)

    @property
    def order(self) -> int:
        """Columns with vectors come first; before them those that may enter any watch, not only filtered ones."""
        if self.vector is None or not self.may_enter:
            return 2
        return 0 if self.moved else 1


class Batch:
    """The columns of a commit. Those up to `moved` matter to all watches, those up to `scored` to filtered ones.

    `blind` are the numbers of those that may enter watches, but whose vectors aren't known.
    """

    def __init__(self, applied: Applied, dimension: int, metric: Metric) -> None:
        self.first_index_version = applied.first_index_version
        self.index_version = applied.index_version
        changes = (event for event in applied.events if isinstance(event, Change))
        self.columns = sorted(_columns(changes, applied.first_index_version), key=lambda column: column.order)
        orders = [column.order for column in self.columns]
        self.moved = orders.count(0)
        self.scored = self.moved + orders.count(1)
        self.blind = [i for i, column in enumerate(self.columns) if column.may_enter and column.vector is None]
        raw = b"".join(column.vector or b"" for column in self.columns[: self.scored])
        self.vectors = vectors.comparable(np.frombuffer(raw, np.float32).reshape(self.scored, dimension), metric)
        self.squared: npt.NDArray[np.float32] = np.einsum("nd,nd->n", self.vectors, self.vectors)

    @cached_property
    def index_versions(self) -> npt.NDArray[np.int64]:
        """The index_version of each column's last change."""
        return np.array([column.document.index_version for column in self.columns], np.int64)

    @cached_property
    def replaced(self) -> npt.NDArray[np.bool_]:
        """Whether what watches hold of a column's document is void: it is gone, or scores anew."""
        return np.array([column.moved or column.document.deleted for column in self.columns], np.bool_)


def _columns(changes: Iterable[Change], first_index_version: int) -> Iterable[Column]:
    columns: dict[str, Column] = {}
    for change in changes:
        document = change.document
        column = columns.get(document.id)
        if column is None:
            absent = change.event_type is EventType.INSERT and not (change.net and document.version > 1)
            columns[document.id] = Column(document, change.vector, change.before, absent, moved=False)
            continue
        if change.vector is not None or column.document.vector_version != document.vector_version:
            column.vector = change.vector
        column.document = document
    for column in columns.values():
        label = column.document.vector_version
        # A vector's version is the index_version it came with. Where a filter's verdict before the commit can't be told,
        # the document is treated as one that has a new vector.
        unknown = column.before is None and not column.absent and column.vector is not None
        column.moved = label is not None and (label >= first_index_version or unknown)
    return columns.values()

"""The engine's values: what is asked of a collection, what it holds, what changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]
"""float32[d], C-contiguous, checked: finite, and not zero where the metric is cosine."""

Labels: TypeAlias = npt.NDArray[np.int64]
"""int64[n] of vector versions."""

Metadata: TypeAlias = dict[str, Any]
"""A JSON object, checked by `gateway.protocol.checks.metadata`."""


TEXT_FIELDS = ("name", "description", "category", "tags")
SEPARATOR = " | "

_EVENT_BYTES = 256


class Metric(StrEnum):
    COSINE = "cosine"
    IP = "ip"
    L2 = "l2"


class Source(IntEnum):
    """Where a document's vector comes from, hence which changes ask for a new one."""

    VECTOR = 0
    """The producer sent it."""
    CONTENT = 1
    """It embeds the content the producer sent."""
    FIELDS = 2
    """It embeds content built from text fields of the metadata."""


class EventType(StrEnum):
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    REFRESH = "refresh"


class Status(StrEnum):
    INSERTED = "inserted"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    DUPLICATE = "duplicate"
    DELETED = "deleted"
    MISSING = "missing"


class Put(msgspec.Struct, frozen=True, eq=False):
    """Set the fields that are given; those left out keep what is stored.

    `from_fields` asks for a vector made from the text fields of the metadata, whatever the stored one was made from.
    """

    id: str
    vector: Vector | None = None
    content: str | None = None
    metadata: Metadata | None = None
    if_version: int | None = None
    from_fields: bool = False


class Patch(msgspec.Struct, frozen=True):
    """Merge `changes` into the metadata of a stored document (RFC 7396: a null removes a key)."""

    id: str
    changes: Metadata
    content: str | None = None
    if_version: int | None = None


class Remove(msgspec.Struct, frozen=True):
    id: str


class Compute(msgspec.Struct, frozen=True, eq=False):
    """Set the metadata to what `metadata` makes of the stored document (None where there is none): JSON text of an object.

    It is called wherever the write is planned, in a thread, maybe several times; the latest result is what counts. What
    it raises refuses the write. A new document gets `vector`, float32[d] of the collection's dimension.
    """

    id: str
    metadata: Callable[[Document | None], str]
    vector: bytes


Operation: TypeAlias = Put | Patch | Remove | Compute


class Write(msgspec.Struct, eq=False):
    """Operations that are applied together or not at all.

    `atomic` also closes them with a `batch_complete` event. `event_id` makes the write idempotent within the
    collection's window. `vectors` collects the embeddings of texts that a first pass found to be needed.
    """

    operations: tuple[Operation, ...]
    atomic: bool = False
    event_id: str | None = None
    priority: int = 0
    size_bytes: int = 0
    vectors: dict[str, Vector] = msgspec.field(default_factory=dict)
    held: bool = False
    """Not to be applied yet: only to be told what it will need."""
    listed_as: str | None = None
    """The field of the command that lists the operations, for error messages; None where there is one by itself."""


class Document(msgspec.Struct, frozen=True):
    """A document as stored, or the tombstone of a deleted one (`vector_version` is None)."""

    id: str
    version: int
    index_version: int
    created: int
    vector_version: int | None
    source: Source
    updated_at: int
    """Microseconds since the epoch."""
    metadata: str
    """JSON text."""
    content: str | None

    @property
    def deleted(self) -> bool:
        return self.vector_version is None


class Change(msgspec.Struct, frozen=True, tag="change"):
    """One committed change of one document, or the net of several."""

    event_type: EventType
    document: Document
    before: str | None
    """The metadata the change replaced, JSON text; None for an insert, and where it isn't known any more."""
    vector: bytes | None
    """The document's vector, where the change brought a new one or the reader asked for it."""
    net: bool = False
    """Whether it sums up several: the document may have been deleted and made again in between."""

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory and on the wire."""
        d = self.document
        return _EVENT_BYTES + sum(map(len, (d.id, d.metadata, d.content or "", self.before or "", self.vector or b"")))


class BatchComplete(msgspec.Struct, frozen=True, tag="batch_complete"):
    """Closes the changes of an atomic write."""

    first_index_version: int
    index_version: int
    count: int
    at: int

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory and on the wire."""
        return _EVENT_BYTES


class Applied(msgspec.Struct, frozen=True):
    """What one commit changed, in order of index_version."""

    first_index_version: int
    index_version: int
    events: tuple[Change | BatchComplete, ...]


class ItemResult(msgspec.Struct, frozen=True):
    id: str
    version: int
    status: Status


class Done(msgspec.Struct, frozen=True):
    """The write is on disk and searchable. `index_version` is the collection's when it was."""

    index_version: int
    results: tuple[ItemResult, ...]


@dataclass(frozen=True, slots=True)
class NeedsVectors:
    """The write can't be applied before these texts are embedded; nothing of it has been."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hit:
    document: Document
    score: float
    vector: bytes | None


@dataclass(frozen=True, slots=True)
class Answer:
    """For each vector of the query the k nearest documents, best first, as of `index_version`."""

    index_version: int
    results: tuple[tuple[Hit, ...], ...]
    several: bool = False
    """Whether the query was for several vectors, if only for a list of one."""

    def at_least(self, score: float) -> Answer:
        """Return the answer without what scores less."""
        results = tuple(tuple(hit for hit in hits if hit.score >= score) for hits in self.results)
        return Answer(self.index_version, results, self.several)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of index_versions to read net changes of: those after `after`, up to `through`.

    `origin` is where the reader started from: a document made later is an insert to it.
    """

    origin: int
    after: int
    through: int


@dataclass(frozen=True, slots=True)
class Page:
    """Net changes after a position, by index_version. `through` is the position reached; `more` says go on from it."""

    changes: tuple[Change, ...]
    through: int
    more: bool


@dataclass(frozen=True, slots=True)
class Spec:
    """What a collection is made with and never changes."""

    name: str
    dimension: int
    metric: Metric = Metric.COSINE
    model: str | None = None
    m: int = 16
    ef_construction: int = 100
    ef_search: int = 64
    hot_rows: int | None = None
    """How many vectors the hot buffer keeps; None leaves it to the node."""
    indexes: tuple[str, ...] = ()
    """Metadata fields (dotted paths) that filters find by an index."""
    text_fields: tuple[str, ...] = TEXT_FIELDS
    """Metadata fields (dotted paths) whose text is embedded where a document has neither vector nor content."""
    separator: str = SEPARATOR
    """What joins them."""
    model_identity: str | None = None
    """What the model was when the collection was made: see `gateway.embed.model.Model.identity`."""

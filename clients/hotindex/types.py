"""What goes to the gateway and comes from it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias

Metadata: TypeAlias = Mapping[str, Any]
Include: TypeAlias = Literal["content", "vector"]
Metric: TypeAlias = Literal["cosine", "ip", "l2"]
OnFull: TypeAlias = Literal["wait", "conflate", "fail"]


class _Array(Protocol):
    """What numpy's arrays are, without a need of numpy."""

    def tolist(self) -> Any: ...


VectorLike: TypeAlias = Sequence[float] | bytes | _Array
"""Numbers, an array of them (numpy's too), or little-endian float32 bytes."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document to upsert. Fields left out keep what is stored; a new one needs a vector, content or text fields.

    `if_version` is the version the stored document must have; 0 says that there must be none.
    """

    id: str
    vector: VectorLike | None = None
    content: str | None = None
    metadata: Metadata | None = None
    if_version: int | None = None


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as the gateway has it; `content` and `vector` only where they were asked for."""

    collection: str
    id: str
    version: int
    updated_at: datetime
    metadata: dict[str, Any]
    content: str | None = None
    vector: array[float] | None = None


@dataclass(frozen=True, slots=True)
class WriteResult:
    """`status` is inserted, updated, unchanged, duplicate, deleted or missing."""

    id: str
    version: int
    status: str


@dataclass(frozen=True, slots=True)
class Ack:
    """The write is on disk, and in the next search."""

    collection: str
    index_version: int
    results: tuple[WriteResult, ...]


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result; a larger score is closer."""

    id: str
    score: float
    version: int
    metadata: dict[str, Any]
    content: str | None = None
    vector: array[float] | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """The nearest documents, best first, as of `index_version`."""

    collection: str
    index_version: int
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """A document among the top k of a watch; a larger score is closer."""

    id: str
    score: float
    metadata: dict[str, Any]
    content: str | None = None
    vector: array[float] | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What is different in the answer to a watch since the Change before; `results` is the answer as of `index_version`.

    `results`, `added` and `changed` (another score, or other metadata) have the best first, ties by id. `removed` are ids.
    """

    index_version: int
    added: tuple[Match, ...]
    changed: tuple[Match, ...]
    removed: tuple[str, ...]
    results: tuple[Match, ...]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """An item that is recommended to a user; a larger score says that the user is more likely to take it.

    `metadata` are those the gateway told when it was asked, at the beginning and after a lost connection. It tells none of
    what comes into the list later: they are None then.
    """

    id: str
    score: float
    metadata: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class RecommendationUpdate:
    """What is recommended to a user from now on: `results`, the whole list, best first.

    `added` are those that weren't in the RecommendationUpdate before, `removed` the ids of those that were and are no more.
    """

    user_id: str
    added: tuple[Recommendation, ...]
    removed: tuple[str, ...]
    results: tuple[Recommendation, ...]


@dataclass(frozen=True, slots=True)
class Update:
    """A change of a document.

    `event_type` is insert, update, delete, refresh (a new vector alone) or batch_complete (closes an atomic batch: no
    document, but `count` and `first_index_version`). `left` marks a document that no longer fits the filter.
    """

    collection: str
    event_type: str
    index_version: int
    timestamp: datetime
    document_id: str | None = None
    version: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    content: str | None = None
    vector: array[float] | None = None
    left: bool = False
    count: int | None = None
    first_index_version: int | None = None


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The connection was lost and is there again; what was missed follows."""

    collection: str
    index_version: int


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """All up to `index_version` has come; what follows is live. `metric` is what the collection's scores are."""

    collection: str
    index_version: int
    metric: Metric


@dataclass(frozen=True, slots=True)
class Reset:
    """What is known of the collection is void; all of it follows as updates."""

    collection: str
    epoch: str


Event: TypeAlias = Update | Reset | Reconnected | CaughtUp
"""What a subscription yields."""

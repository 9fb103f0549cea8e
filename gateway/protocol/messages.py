"""The messages of the wire contract, as typed values.

A command says what a client asks for; `ref`, if it sent one, comes back with every reply. Field names and defaults are
the contract's. `collection` left out means the gateway's default collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import msgspec

Ref: TypeAlias = str | int | None
Include: TypeAlias = Literal["content", "vector"]
Priority: TypeAlias = Literal[0, 1, 2]
CHOICES: dict[str, tuple[str | int, ...]] = {"include": get_args(Include), "priority": get_args(Priority)}
"""What the fields may be that have few values."""

RawVector: TypeAlias = bytes | list[float]
"""Little-endian float32 (a bin in MessagePack, base64 in JSON), or an array of numbers."""

JsonObject: TypeAlias = dict[str, Any]


class Command(msgspec.Struct, frozen=True, kw_only=True):
    ref: Ref = None


class Ping(Command, frozen=True, kw_only=True):
    pass


class CollectionCommand(Command, frozen=True, kw_only=True):
    collection: str | None = None


class Subscribe(CollectionCommand, frozen=True, kw_only=True):
    since: int | None = None
    epoch: str | None = None
    filter: JsonObject | None = None
    include: tuple[Include, ...] = ()
    batch: bool = False
    caught_up: bool = False


class Unsubscribe(CollectionCommand, frozen=True, kw_only=True):
    pass


class WriteCommand(CollectionCommand, frozen=True, kw_only=True):
    event_id: str | None = None
    priority: Priority = 0


class DocumentInput(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    vector: RawVector | None = None
    content: str | None = None
    metadata: JsonObject | None = None
    if_version: int | None = None


class Upsert(WriteCommand, frozen=True, kw_only=True):
    id: str | None = None
    vector: RawVector | None = None
    content: str | None = None
    metadata: JsonObject | None = None
    if_version: int | None = None
    documents: list[DocumentInput] | None = None
    atomic: bool = False


class Patch(WriteCommand, frozen=True, kw_only=True):
    id: str
    changes: JsonObject
    content: str | None = None
    if_version: int | None = None


class Delete(WriteCommand, frozen=True, kw_only=True):
    id: str | None = None
    ids: list[str] | None = None


class PutOperation(DocumentInput, frozen=True, kw_only=True, tag_field="action", tag="upsert"):
    pass


class PatchOperation(msgspec.Struct, frozen=True, kw_only=True, tag_field="action", tag="patch"):
    id: str
    changes: JsonObject
    content: str | None = None
    if_version: int | None = None


class DeleteOperation(msgspec.Struct, frozen=True, kw_only=True, tag_field="action", tag="delete"):
    id: str


Operation: TypeAlias = PutOperation | PatchOperation | DeleteOperation


class Transaction(WriteCommand, frozen=True, kw_only=True):
    operations: list[Operation]


class Get(CollectionCommand, frozen=True, kw_only=True):
    id: str
    include: tuple[Include, ...] = ()


class Search(CollectionCommand, frozen=True, kw_only=True):
    vector: RawVector | None = None
    vectors: list[RawVector] | None = None
    text: str | None = None
    id: str | None = None
    user_id: str | None = None
    diversity: float | None = None
    k: int = 10
    filter: JsonObject | None = None
    min_score: float | None = None
    include: tuple[Include, ...] = ()
    min_index_version: int | None = None
    exact: bool = False
    ef: int | None = None


class Watch(CollectionCommand, frozen=True, kw_only=True):
    vector: RawVector | None = None
    text: str | None = None
    id: str | None = None
    user_id: str | None = None
    diversity: float | None = None
    k: int = 10
    filter: JsonObject | None = None
    include: tuple[Include, ...] = ()
    min_score: float | None = None
    min_index_version: int | None = None
    exact: bool = False
    max_rate: float | None = None


class Unwatch(Command, frozen=True, kw_only=True):
    watch_id: str


class Learn(CollectionCommand, frozen=True, kw_only=True):
    """What a user did."""

    user_id: str
    item_id: str
    value: float | None = None
    timestamp: str | float | None = None
    event_id: str | None = None


class UserInteraction(Learn, frozen=True, kw_only=True):
    action: str


class UserEvent(Learn, frozen=True, kw_only=True):
    event_type: str
    item_features: JsonObject | None = None


class PutUser(CollectionCommand, frozen=True, kw_only=True):
    """Replace the vector that stands for a user."""

    user_id: str = ""
    vector: RawVector
    event_id: str | None = None


class ProductCreated(WriteCommand, frozen=True, kw_only=True):
    product_id: str
    data: JsonObject


class ProductUpdated(WriteCommand, frozen=True, kw_only=True):
    product_id: str
    changes: JsonObject


class ProductDeleted(WriteCommand, frozen=True, kw_only=True):
    product_id: str


Write: TypeAlias = Upsert | Patch | Delete | Transaction | ProductCreated | ProductUpdated | ProductDeleted

COMMANDS: dict[str, type[Command]] = {
    "ping": Ping,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "upsert": Upsert,
    "patch": Patch,
    "delete": Delete,
    "transaction": Transaction,
    "get": Get,
    "search": Search,
    "watch": Watch,
    "unwatch": Unwatch,
    "user_interaction": UserInteraction,
    "user_event": UserEvent,
    "product_created": ProductCreated,
    "product_updated": ProductUpdated,
    "product_deleted": ProductDeleted,
}


_NAMES = {command: action for action, command in COMMANDS.items()}


def name_of(command: Command) -> str:
    """Return the action that names a command on the wire."""
    return _NAMES[type(command)]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    ref: Ref = None


class Connected(Message, frozen=True, kw_only=True, tag="connected"):
    client_id: str
    message: str
    node: str
    protocol: int
    ping_interval_s: float


class Pong(Message, frozen=True, kw_only=True, tag="pong"):
    timestamp: str


class Subscribed(Message, frozen=True, kw_only=True, tag="subscribed"):
    collection: str
    index_version: int
    epoch: str
    recovered: bool


class CaughtUp(Message, frozen=True, kw_only=True, tag="caught_up"):
    collection: str
    index_version: int
    metric: str


class Unsubscribed(Message, frozen=True, kw_only=True, tag="unsubscribed"):
    collection: str


class Reset(Message, frozen=True, kw_only=True, tag="reset"):
    collection: str
    epoch: str


class WriteResult(msgspec.Struct, frozen=True):
    id: str
    version: int
    status: str


class Ack(Message, frozen=True, kw_only=True, tag="ack"):
    collection: str
    index_version: int
    results: tuple[WriteResult, ...]


class DocumentMessage(Message, frozen=True, kw_only=True, tag="document"):
    collection: str
    id: str
    version: int
    updated_at: str
    metadata: Any
    content: str | None = None
    vector: Any = None


class ResultItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    score: float
    version: int
    metadata: Any
    content: str | None = None
    vector: Any = None


class Results(Message, frozen=True, kw_only=True, tag="results"):
    collection: str
    index_version: int
    results: tuple[ResultItem, ...] | tuple[tuple[ResultItem, ...], ...]
    """A list for each vector where the search had `vectors`."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    event_type: str
    document_id: str | None = None
    timestamp: str
    index_version: int
    version: int | None = None
    metadata: Any = None
    content: str | None = None
    vector: Any = None
    left: bool = False
    count: int | None = None
    first_index_version: int | None = None


class IndexUpdate(Message, frozen=True, kw_only=True, tag="index_update"):
    collection: str
    event: Event | msgspec.Raw | None = None
    events: Sequence[Event | msgspec.Raw] | None = None


class WatchResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    score: float
    metadata: Any
    content: str | None = None
    vector: Any = None
    version: int | None = None
    """What nodes tell each other, and clients aren't told."""


class Watching(Message, frozen=True, kw_only=True, tag="watching"):
    watch_id: str
    collection: str
    index_version: int
    exact: bool
    results: tuple[WatchResult, ...]
    query: bytes | None = None
    """The vector watched for: what nodes tell each other, and clients aren't told."""


class WatchItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    score: float
    rank: int
    metadata: Any
    content: str | None = None
    vector: Any = None
    version: int | None = None


class WatchUpdate(Message, frozen=True, kw_only=True, tag="watch_update"):
    watch_id: str
    index_version: int
    added: tuple[WatchItem, ...]
    changed: tuple[WatchItem, ...]
    removed: tuple[str, ...]
    query: bytes | None = None
    """As in Watching, where it follows a document."""


class SyncResult(
    Message,
    frozen=True,
    kw_only=True,
    tag="sync_result",
):
    success: bool
    latency_ms: float
    recommendations_updated: bool


class UserMessage(Message, frozen=True, kw_only=True, tag="user"):
    """What is known of a user."""

    collection: str
    user_id: str
    version: int
    updated_at: str
    evidence: float
    seen: int
    recent: tuple[str, ...]
    categories: dict[str, float]


class RecommendationUpdate(Message, frozen=True, kw_only=True, tag="recommendation_update"):
    watch_id: str | None = None
    """None where it answers an event of the user."""
    collection: str
    user_id: str
    recommendations: tuple[str, ...]
    scores: tuple[float, ...]
    timestamp: str


class Unwatched(Message, frozen=True, kw_only=True, tag="unwatched"):
    watch_id: str
    collection: str | None = None
    """Where the collection is gone, and the watch with it."""


class ErrorMessage(Message, frozen=True, kw_only=True, tag="error"):
    code: str
    message: str
    retryable: bool
    field: str | None = None
    version: int | None = None
    retry_after_s: float | None = None
    id: str | None = None

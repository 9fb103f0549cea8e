"""What nodes send each other, beside what goes through Redis: values and their encoding. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, TypeAlias

import msgspec

from gateway import errors
from gateway.engine import vectors
from gateway.engine.types import (
    Answer,
    BatchComplete,
    Change,
    Compute,
    Document,
    Done,
    Operation,
    Page,
    Patch,
    Put,
    Remove,
    Span,
    Spec,
    Write,
)
from gateway.errors import HotindexError
from gateway.protocol import checks, messages

LENGTH_BYTES = 4
Position = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class Info(msgspec.Struct, frozen=True):
    """A collection at the node that hosts it. Deletions up to `purged_through` are forgotten; `starts` are its terms."""

    spec: Spec
    epoch: str
    index_version: int
    documents: int
    purged_through: int
    starts: tuple[tuple[int, int], ...]


class _Operation(msgspec.Struct, frozen=True, array_like=True):
    """`kind` is p, u or d: put, update or delete."""

    kind: Literal["p", "u", "d"]
    id: str
    vector: bytes | None = None
    content: str | None = None
    metadata: dict[str, object] | None = None
    if_version: int | None = None
    from_fields: bool = False


class _Write(msgspec.Struct, frozen=True, array_like=True):
    operations: list[_Operation]
    atomic: bool
    event_id: str | None
    priority: Annotated[int, msgspec.Meta(ge=0, le=2)]
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    listed_as: str | None


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """A HotindexError on its way."""

    code: str
    message: str
    field: str | None = None
    version: int | None = None
    retry_after_s: float | None = None


class Success(msgspec.Struct, frozen=True, tag="success"):
    done: Done


class GetCall(msgspec.Struct, frozen=True):
    id: str
    include_vector: bool


class ChangesCall(msgspec.Struct, frozen=True):
    span: Span
    limit: Limit
    limit_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]
    with_vectors: bool
    epoch: str


class CopyCall(msgspec.Struct, frozen=True):
    """Asks for a page of the net change since `origin`, as agreed on in `term`: what comes after `after`."""

    epoch: str
    term: int
    origin: Position
    after: Position
    limit: Limit = 2048


class Greeting(msgspec.Struct, frozen=True, tag="greeting"):
    """What an edge that is to be lent watches says first; a host that is as far as `index_version` is Ready."""

    epoch: str
    index_version: Position


class WatchCall(msgspec.Struct, frozen=True, tag="watch"):
    """Asks for a watch, by an id that names it on this connection. `last` is the vector another host watched for: it is
    the query where a document that it was the vector of is deleted.
    """

    watch_id: str
    command: messages.Watch
    last: bytes | None = None


class UnwatchCall(msgspec.Struct, frozen=True, tag="unwatch"):
    watch_id: str


class Ready(messages.Message, frozen=True, kw_only=True, tag="ready"):
    pass


class Refused(messages.Message, frozen=True, kw_only=True, tag="refused"):
    """Answers a WatchCall, or, without `watch_id`, a Greeting."""

    watch_id: str | None = None
    failure: Failure


Lent: TypeAlias = (
    messages.Watching | messages.WatchUpdate | messages.RecommendationUpdate | messages.Unwatched | Ready | Refused
)
"""What a host tells an edge. Vectors are bytes, metadata JSON, and documents have their versions."""


class Found(msgspec.Struct, frozen=True):
    document: Document | None
    vector: bytes | None


encode = msgspec.msgpack.Encoder().encode
decode_writes = msgspec.msgpack.Decoder(list[_Write]).decode
decode_outcomes = msgspec.msgpack.Decoder(list[Success | Failure]).decode
decode_failure = msgspec.msgpack.Decoder(Failure).decode
decode_info = msgspec.msgpack.Decoder(Info).decode
decode_search = msgspec.msgpack.Decoder(messages.Search).decode
decode_done = msgspec.msgpack.Decoder(Done).decode
decode_interaction = msgspec.msgpack.Decoder(messages.UserInteraction).decode
decode_event = msgspec.msgpack.Decoder(messages.UserEvent).decode
decode_put_user = msgspec.msgpack.Decoder(messages.PutUser).decode
decode_user_id = msgspec.msgpack.Decoder(str).decode
decode_user = msgspec.msgpack.Decoder(messages.UserMessage).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
decode_get = msgspec.msgpack.Decoder(GetCall).decode
decode_found = msgspec.msgpack.Decoder(Found).decode
decode_changes = msgspec.msgpack.Decoder(ChangesCall).decode
decode_copy = msgspec.msgpack.Decoder(CopyCall).decode
decode_relay = msgspec.msgpack.Decoder(tuple[Position, str]).decode
decode_page = msgspec.msgpack.Decoder(Page).decode
decode_subscribed = msgspec.msgpack.Decoder(messages.Subscribed).decode
decode_relayed = msgspec.msgpack.Decoder(list[Change | BatchComplete]).decode
decode_lending = msgspec.msgpack.Decoder(Greeting | WatchCall | UnwatchCall).decode
decode_lent = msgspec.msgpack.Decoder(Lent).decode

_ERRORS = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, HotindexError) and hasattr(kind, "code")
}


def relay_call(body: bytes) -> tuple[int, str]:
    """Return position and epoch from which on to relay. Raises InvalidMessage."""
    try:
        return decode_relay(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.InvalidMessage(f"relay: {error}") from None


def encode_writes(writes: Sequence[Write]) -> bytes:
    return encode(
        [
            _Write(
                [_operation(one) for one in write.operations],
                write.atomic,
                write.event_id,
                write.priority,
                write.size_bytes,
                write.listed_as,
            )
            for write in writes
        ]
    )


def _operation(operation: Operation) -> _Operation:
    match operation:
        case Put(id, vector, content, metadata, if_version, from_fields):
            blob = None if vector is None else vector.tobytes()
            return _Operation("p", id, blob, content, metadata, if_version, from_fields)
        case Patch(id, changes, content, if_version):
            return _Operation("u", id, None, content, changes, if_version)
        case Remove(id):
            return _Operation("d", id)
        case Compute():
            raise AssertionError("what is computed is computed where the collection is hosted")


def writes(body: bytes) -> list[Write]:
    """Return the writes another node forwards. Raises msgspec.DecodeError, and what is wrong with them."""
    return [_write_of(one) for one in decode_writes(body)]


def _write_of(one: _Write) -> Write:
    if one.event_id is not None:
        checks.document_id(one.event_id, "event_id")
    return Write(
        tuple(_operation_of(operation) for operation in one.operations),
        atomic=one.atomic,
        event_id=one.event_id,
        priority=one.priority,
        size_bytes=one.size_bytes,
        listed_as=one.listed_as,
    )


def _operation_of(one: _Operation) -> Operation:
    checks.document_id(one.id)
    checks.metadata(one.metadata or {})
    checks.document_size(one.metadata or {}, one.content, one.id)
    if one.kind == "d":
        return Remove(one.id)
    if one.kind == "u":
        return Patch(one.id, one.metadata or {}, one.content, one.if_version)
    vector = None if one.vector is None else vectors.parse(one.vector, "vector")
    return Put(one.id, vector, one.content, one.metadata, one.if_version, one.from_fields)


def failure(error: HotindexError) -> Failure:
    return Failure(
        error.code,
        error.message,
        error.field,
        getattr(error, "version", None),
        getattr(error, "retry_after_s", None),
    )


def error(failure: Failure) -> HotindexError:
    """Return the error another node tells of."""
    kind = _ERRORS.get(failure.code)
    if kind is errors.Conflict:
        return errors.Conflict(failure.message, version=failure.version, field=failure.field)
    if kind in (errors.Overloaded, errors.RateLimited):
        return errors.Overloaded(failure.message, retry_after_s=failure.retry_after_s or 0.0, field=failure.field)
    if kind is errors.EmbeddingUnavailable:
        return kind(failure.message, retry_after_s=failure.retry_after_s, field=failure.field)
    if kind is None or kind is errors.Internal:
        return errors.Internal(failure.message.rpartition(" ")[2])
    return kind(failure.message, field=failure.field)


def is_relayed(frame: bytes) -> bool:
    """Tell whether a frame holds changes: a list; messages are maps."""
    return frame[0] & 0xF0 == 0x90 or frame[0] in (0xDC, 0xDD)


def relayed(buffer: bytearray) -> Iterator[bytes]:
    """Take the whole frames off the front of `buffer`: four bytes of length, big-endian, and as many of payload."""
    while len(buffer) >= LENGTH_BYTES:
        end = LENGTH_BYTES + int.from_bytes(buffer[:LENGTH_BYTES], "big")
        if len(buffer) < end:
            return
        yield bytes(buffer[LENGTH_BYTES:end])
        del buffer[:end]

"""The MessagePack side of the wire contract: dicts of the decoder to typed values and back."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import IO, Any

import msgpack

from hotindex.types import (
    Ack,
    CaughtUp,
    Document,
    Hit,
    Match,
    Reset,
    Results,
    StoredDocument,
    Update,
    VectorLike,
    WriteResult,
)

SUBPROTOCOL = "hotindex.v1.msgpack"


def encode(message: Mapping[str, Any]) -> bytes:
    """Encode a command; entries that are None are left out."""
    data: bytes = msgpack.packb({key: value for key, value in message.items() if value is not None})
    return data


def copied(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without the entries that are None. Raises TypeError, ValueError for what can't be sent."""
    return decode(encode(fields))


def pack(value: Any) -> bytes:
    data: bytes = msgpack.packb(value)
    return data


def unpacker(file: IO[bytes]) -> Any:
    """Return what reads one value after the other from a file."""
    return msgpack.Unpacker(file, max_buffer_size=0)


def decode(data: bytes) -> dict[str, Any]:
    message: dict[str, Any] = msgpack.unpackb(data)
    return message


def vector_bytes(vector: VectorLike) -> bytes:
    """Return a vector as little-endian float32."""
    if isinstance(vector, bytes):
        return vector
    numbers = array("f", vector if isinstance(vector, list | tuple) else _listed(vector))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _listed(vector: Any) -> Any:
    return vector.tolist() if hasattr(vector, "tolist") else list(vector)


def vector_array(data: bytes | None) -> array[float] | None:
    """Return received bytes as an array of float32, which numpy takes without copying."""
    if data is None:
        return None
    numbers = array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def document(value: Document) -> dict[str, Any]:
    fields = {
        "id": value.id,
        "vector": None if value.vector is None else vector_bytes(value.vector),
        "content": value.content,
        "metadata": value.metadata,
        "if_version": value.if_version,
    }
    return {key: item for key, item in fields.items() if item is not None}


def search_options(
    k: int,
    where: Mapping[str, Any] | None,
    min_score: float | None,
    include: Iterable[str],
    min_index_version: int | None,
    exact: bool,
    ef: int | None,
) -> dict[str, Any]:
    """Return the fields of a search that say how, whatever is searched for."""
    return {
        "k": k,
        "filter": where,
        "min_score": min_score,
        "include": list(include) or None,
        "min_index_version": min_index_version,
        "exact": exact or None,
        "ef": ef,
    }


def ack(message: Mapping[str, Any]) -> Ack:
    results = tuple(WriteResult(item["id"], item["version"], item["status"]) for item in message["results"])
    return Ack(message["collection"], message["index_version"], results)


def stored(message: Mapping[str, Any]) -> StoredDocument:
    return StoredDocument(
        message["collection"],
        message["id"],
        message["version"],
        datetime.fromisoformat(message["updated_at"]),
        message["metadata"],
        message.get("content"),
        vector_array(message.get("vector")),
    )


def results(message: Mapping[str, Any]) -> Results:
    return Results(message["collection"], message["index_version"], _hits(message["results"]))


def result_lists(message: Mapping[str, Any]) -> list[Results]:
    """Return the answers to the several vectors of one search."""
    return [Results(message["collection"], message["index_version"], _hits(items)) for items in message["results"]]


def _hits(items: Iterable[Mapping[str, Any]]) -> tuple[Hit, ...]:
    return tuple(
        Hit(
            item["id"],
            item["score"],
            item["version"],
            item["metadata"],
            item.get("content"),
            vector_array(item.get("vector")),
        )
        for item in items
    )


def matches(items: Iterable[Mapping[str, Any]]) -> tuple[Match, ...]:
    return tuple(
        Match(item["id"], item["score"], item["metadata"], item.get("content"), vector_array(item.get("vector")))
        for item in items
    )


def pushes(message: Mapping[str, Any]) -> Iterator[Update | Reset | CaughtUp]:
    """Yield what a message of the room tells."""
    collection = message["collection"]
    if message["type"] == "reset":
        yield Reset(collection, message["epoch"])
        return
    if message["type"] == "caught_up":
        yield CaughtUp(collection, message["index_version"], message["metric"])
        return
    for event in message["events"] if "events" in message else (message["event"],):
        yield Update(
            collection,
            event["event_type"],
            event["index_version"],
            datetime.fromisoformat(event["timestamp"]),
            event.get("document_id"),
            event.get("version"),
            event.get("metadata", {}),
            event.get("content"),
            vector_array(event.get("vector")),
            event.get("left", False),
            event.get("count"),
            event.get("first_index_version"),
        )

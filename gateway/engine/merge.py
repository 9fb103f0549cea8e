"""What an operation makes of a stored document. Pure: values in, values out.

A document's vector follows its source: the producer's own vector stays until another is sent, an embedding of content
is renewed when the content changes, and an embedding of text fields when the text built from them changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from gateway.engine.text import build_text
from gateway.engine.types import Compute, Document, Metadata, Operation, Patch, Put, Remove, Source, Spec, Vector
from gateway.errors import Conflict, InvalidArgument, NotFound
from gateway.protocol import checks


class Stored(msgspec.Struct, frozen=True):
    """A document, or its tombstone, with the bytes of its vector where they were asked for.

    `key` is the store's for the document, 0 where it has none yet; `vector_crc` the CRC-32 of the stored vector.
    """

    document: Document
    vector: bytes | None
    key: int = 0
    vector_crc: int | None = None


UNKNOWN = b""
"""Stands for a vector that isn't there yet."""


class Draft(msgspec.Struct, frozen=True):
    """The state an operation asks for. `vector` is None where the stored one stays."""

    source: Source
    metadata: str
    content: str | None
    vector: bytes | None


@dataclass(frozen=True, slots=True)
class Deletion:
    pass


@dataclass(frozen=True, slots=True)
class Unchanged:
    pass


@dataclass(frozen=True, slots=True)
class Missing:
    pass


@dataclass(frozen=True, slots=True)
class NeedsVector:
    """`draft` is what comes of it, but for the vector."""

    text: str
    draft: Draft


Outcome = Draft | Deletion | Unchanged | Missing | NeedsVector


def merge(operation: Operation, stored: Stored | None, spec: Spec, vectors: Mapping[str, Vector]) -> Outcome:
    """Return what `operation` makes of `stored`.

    `vectors` holds the texts embedded so far. Raises Conflict (`if_version` differs), NotFound (patch of a document
    that isn't there) and InvalidArgument (nothing to make a vector of).
    """
    live = stored if stored is not None and not stored.document.deleted else None
    if isinstance(operation, Remove):
        return Deletion() if live else Missing()
    if isinstance(operation, Compute):
        return _computed(operation, live)
    _check_version(operation, live)
    if isinstance(operation, Patch):
        if live is None:
            raise NotFound(f"no document {operation.id!r} in collection {spec.name!r}", field="id")
        merged = patched(msgspec.json.decode(live.document.metadata), operation.changes)
        operation = Put(operation.id, content=operation.content, metadata=merged)
    return _put(operation, live, spec, vectors)


def _computed(compute: Compute, live: Stored | None) -> Draft | Unchanged:
    metadata = compute.metadata(live.document if live else None)
    checks.document_bytes(len(metadata.encode()), compute.id)
    if live and metadata == live.document.metadata:
        return Unchanged()
    return Draft(Source.VECTOR, metadata, None, None if live else compute.vector)


def patched(metadata: Metadata, changes: Metadata) -> Metadata:
    """Return `metadata` with `changes` merged in (JSON Merge Patch, RFC 7396)."""
    result = dict(metadata)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            old = result.get(key)
            result[key] = patched(old if isinstance(old, dict) else {}, value)
        else:
            result[key] = value
    return result


def _check_version(operation: Put | Patch, live: Stored | None) -> None:
    version = live.document.version if live else 0
    if operation.if_version is not None and operation.if_version != version:
        raise Conflict(
            f"document {operation.id!r} has version {version}, not {operation.if_version}",
            version=version,
            field="if_version",
        )


def _put(put: Put, live: Stored | None, spec: Spec, vectors: Mapping[str, Vector]) -> Draft | Unchanged | NeedsVector:
    old = live.document if live else None
    metadata = old.metadata if old else "{}"
    if put.metadata is not None:
        metadata = msgspec.json.encode(put.metadata).decode()
    source, content, text = _text(put, old, metadata, spec)
    checks.document_bytes(len(metadata.encode()) + len((content or "").encode()), put.id)
    vector: bytes | None = None
    if put.vector is not None:
        vector = put.vector.tobytes()
    elif text is not None and not (old and old.source is not Source.VECTOR and old.content == text):
        if text not in vectors:
            return NeedsVector(text, Draft(source, metadata, content, UNKNOWN))
        vector = vectors[text].tobytes()
    if live and vector == live.vector:
        vector = None
    same = old and vector is None and source is old.source and content == old.content
    if old and same and same_json(metadata, old.metadata):
        return Unchanged()
    return Draft(source, metadata, content, vector)


def _text(put: Put, old: Document | None, metadata: str, spec: Spec) -> tuple[Source, str | None, str | None]:
    """Return the vector's source, the content, and the text the vector embeds (None: it embeds none)."""
    if put.vector is not None:
        kept = old.content if old and old.source is not Source.FIELDS else None
        return Source.VECTOR, kept if put.content is None else put.content, None
    if put.content is not None:
        if spec.model is None and old:
            return old.source, put.content, None
        return Source.CONTENT, put.content, _embeddable(put.content, put.id, spec)
    if old and old.source is not Source.FIELDS and not put.from_fields:
        return old.source, old.content, None
    built = build_text(msgspec.json.decode(metadata), spec.text_fields, spec.separator)
    if not built:
        raise InvalidArgument(
            f"document {put.id!r} has no vector, no content and no text field to embed", field="vector"
        )
    return Source.FIELDS, built, _embeddable(built, put.id, spec)


def _embeddable(text: str, document_id: str, spec: Spec) -> str:
    if spec.model is None:
        raise InvalidArgument(
            f"document {document_id!r} has no vector, and collection {spec.name!r} has no model to embed its text with",
            field="vector",
        )
    return text


def same_json(a: str, b: str) -> bool:
    """Tell whether two JSON texts are the same value, whatever the order of their keys."""
    return a == b or _canonical(a) == _canonical(b)


def _canonical(text: str) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(text), order="sorted")

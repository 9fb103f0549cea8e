"""What names, ids, metadata and numbers on the wire must look like. Each check raises a HotindexError or returns."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.errors import InvalidArgument, TooLarge

MAX_ID_BYTES = 512
MAX_DOCUMENT_BYTES = 1 << 20
MAX_METADATA_DEPTH = 32
MAX_K = 1000

_COLLECTION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def show(value: object, limit: int = 80) -> str:
    """Return `value` for an error message, cut to a bearable length."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def collection_name(name: str) -> None:
    if not _COLLECTION.fullmatch(name):
        raise InvalidArgument(
            f"collection {show(name)} is no valid name: 1 to 128 of A-Z a-z 0-9 _ . -, not starting with . or -",
            field="collection",
        )


def document_id(value: str, field: str = "id") -> None:
    if not 1 <= len(value.encode()) <= MAX_ID_BYTES or "\0" in value:
        raise InvalidArgument(f"{field} {show(value)} must have 1 to {MAX_ID_BYTES} bytes and no NUL", field=field)


def between(value: int, low: int, high: int, field: str) -> None:
    if not low <= value <= high:
        raise InvalidArgument(f"{field} is {value}; it must be from {low} to {high}", field=field)


def metadata(value: dict[str, Any], field: str = "metadata") -> None:
    """Check that a decoded map is a JSON object that every encoding and the store can keep without loss."""
    for key, item in value.items():
        kind = type(item)
        if "\0" in key:
            raise InvalidArgument(f"{field} has the key {show(key)}, with a NUL character", field=field)
        if (kind is str and "\0" not in item) or kind is bool or item is None:
            continue
        _value(item, f"{field}.{key}", 1)


def _value(value: Any, field: str, depth: int) -> None:
    if depth > MAX_METADATA_DEPTH:
        raise InvalidArgument(f"{field} is nested more than {MAX_METADATA_DEPTH} deep", field=field)
    match value:
        case list():
            for i, item in enumerate(value):
                _value(item, f"{field}[{i}]", depth + 1)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str) or "\0" in key:
                    raise InvalidArgument(f"{field} has the key {show(key)}; keys are strings without NUL", field=field)
                _value(item, f"{field}.{key}", depth + 1)
        case _ if fault := _fault(value):
            raise InvalidArgument(f"{field} {fault}", field=field)


def _fault(value: object) -> str | None:
    """Tell what is wrong with a scalar."""
    match value:
        case str() if "\0" in value:
            return "holds a NUL character"
        case int() if not -(2**63) <= value < 2**63:
            return f"is {show(value)}, beyond 64 bits"
        case float() if value - value != 0:
            return f"is {value}, not a finite number"
        case str() | int() | float() | None:
            return None
        case _:
            return f"is a {type(value).__name__}, which JSON has no form for"


def document_size(metadata: dict[str, Any], content: str | None, document_id: str) -> None:
    document_bytes(len(msgspec.json.encode(metadata)) + len((content or "").encode()), document_id)


def document_bytes(size_bytes: int, document_id: str) -> None:
    if size_bytes > MAX_DOCUMENT_BYTES:
        raise TooLarge(
            f"document {show(document_id)} has {size_bytes} bytes of content and metadata; the limit is"
            f" {MAX_DOCUMENT_BYTES}",
            field="metadata",
        )

"""The text a document's embedding is made of, where the producer sends fields instead of content."""

from __future__ import annotations

from gateway.engine.types import Metadata

FIELDS = ("name", "description", "category", "tags")
SEPARATOR = " | "


def build_text(metadata: Metadata) -> str:
    """Join the text fields of `metadata` that are there and not empty; a list's items are joined by commas."""
    parts = (_text(metadata.get(field)) for field in FIELDS)
    return SEPARATOR.join(part for part in parts if part)


def _text(value: object) -> str:
    match value:
        case str():
            return value.strip()
        case list():
            return ", ".join(part for part in (_text(item) for item in value) if part)
        case bool() | int() | float():
            return str(value)
        case _:
            return ""

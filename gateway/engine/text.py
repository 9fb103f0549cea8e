"""The text a document's embedding is made of, where the producer sends fields instead of content."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.engine.filter import reached
from gateway.engine.types import SEPARATOR, TEXT_FIELDS, Metadata


def build_text(metadata: Metadata, fields: Sequence[str] = TEXT_FIELDS, separator: str = SEPARATOR) -> str:
    """Join what `fields` (dotted paths) of `metadata` lead to, as far as it is text and not empty.

    A list's items are joined by commas. Empty where there is nothing.
    """
    found = (value for field in fields for value in reached(metadata, tuple(field.split("."))))
    return separator.join(text for value in found if (text := _text(value)))


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

"""The terms of a document under the metadata fields that a collection indexes, as the table `terms` holds them.

A field is the dotted path of a filter. Its terms are the scalars it leads to, through arrays as a filter goes, and one
that says that it leads anywhere. Numbers and strings are stored as they are and compare as in filters; SQLite orders
numbers before strings before blobs, and the rest are blobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from gateway.engine.filter import Compare, Exists, Scalar, reached
from gateway.engine.types import Document

Term: TypeAlias = tuple[int, Any]
"""The number of the field, and the value."""

_NULL, _FALSE, _TRUE, _PRESENT = b"\x00", b"\x01", b"\x02", b"\x03"
_BELOW_TEXT, _ABOVE_TEXT = "", b""
_LARGEST_INTEGER = 2**63


class Terms:
    def __init__(self, fields: Sequence[str]) -> None:
        self._paths = {tuple(field.split(".")): number for number, field in enumerate(fields)}

    def __bool__(self) -> bool:
        return bool(self._paths)

    def of(self, document: Document) -> frozenset[Term]:
        """Return the terms of a document; a tombstone has none."""
        if document.deleted:
            return frozenset()
        metadata = msgspec.json.decode(document.metadata)
        return frozenset((number, value) for path, number in self._paths.items() for value in _values(metadata, path))

    def sql(self, leaf: Compare | Exists, parameters: list[Any]) -> str | None:
        """Return SQL that tells whether a document d fits, or None where its field isn't indexed."""
        number = self._paths.get(leaf.path)
        if number is None:
            return None
        if isinstance(leaf, Exists):
            test, values = "value = ?", [_PRESENT]
        else:
            test, values = _test(leaf)
        parameters += [number, *values]
        return f"(d.key IN (SELECT document FROM terms WHERE field = ? AND {test}))"


def _values(metadata: dict[str, Any], path: tuple[str, ...]) -> set[Any]:
    values: set[Any] = set()
    for found in reached(metadata, path):
        values.add(_PRESENT)
        for value in found if isinstance(found, list) else (found,):
            if not isinstance(value, dict | list):
                values.add(_stored(value))
    return values


def _stored(value: Scalar) -> Any:
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    if isinstance(value, int) and not -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
        return float(value)
    return value


def _test(leaf: Compare) -> tuple[str, list[Any]]:
    """Bound a comparison to the values of its own kind, which stand together in the order of the table."""
    value = _stored(leaf.value)
    if leaf.operator == "=":
        return "value = ?", [value]
    if isinstance(value, str):
        bound = "value < ?" if leaf.operator.startswith(">") else "value >= ?"
        return f"value {leaf.operator} ? AND {bound}", [value, _ABOVE_TEXT if ">" in leaf.operator else _BELOW_TEXT]
    if leaf.operator.startswith(">"):
        return f"value {leaf.operator} ? AND value < ?", [value, _BELOW_TEXT]
    return f"value {leaf.operator} ?", [value]

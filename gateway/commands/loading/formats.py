"""From lines to documents: JSON lines and CSV (RFC 4180).

What can't be one is a Fault, in the codes of the wire contract, and reading goes on with the next line.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from hotindex import Document, wire

from gateway.commands.loading.text import LINE_BYTES, Position, Text, TextLine

Format: TypeAlias = Literal["jsonl", "csv"]
CHUNK_BYTES = 8 << 20
"""Lines and their encoded documents at which a chunk ends, so that it fits into a message of the gateway's (16 MiB)."""

_OWN_FIELDS = frozenset({"vector", "content", "metadata", "if_version"})
_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a line isn't loaded."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line, or a CSV record of several, and what became of it. `number` counts from 1."""

    number: int
    data: bytes
    content: Document | Fault
    size_bytes: int = 0
    """Of the document, encoded."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Successive lines; `end` is the position after them, `file_bytes` how far the file was read for them."""

    lines: tuple[Line, ...]
    end: Position
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Columns:
    """What is where: `id` names a CSV column or JSON field, the others are CSV columns."""

    id: str = "id"
    numbers: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "numbers": sorted(self.numbers), "lists": sorted(self.lists)}


class WrongColumns(Exception):
    """The file's header doesn't have what was asked for."""


class _Bad(Exception):
    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.fault = Fault(code, reason)


class Records:
    """The lines of a file as documents. One thread at a time."""

    def __init__(self, text: Text, form: Format, columns: Columns) -> None:
        """Begins at the start of the file. Raises WrongColumns, and what `Text` does."""
        self._text = text
        self._lines: Iterator[Line] = iter(_JsonLines(text, columns) if form == "jsonl" else _CsvRecords(text, columns))

    def skip(self, to: Position, at_most_bytes: int) -> bool:
        return self._text.skip(to, at_most_bytes)

    def chunk(self, count: int) -> Chunk | None:
        """Return the next lines, at most `count`, and none after CHUNK_BYTES; None at the end."""
        lines: list[Line] = []
        size_bytes = 0
        for line in self._lines:
            lines.append(line)
            size_bytes += len(line.data) + line.size_bytes
            if len(lines) == count or size_bytes >= CHUNK_BYTES:
                break
        return Chunk(tuple(lines), self._text.position, self._text.file_bytes) if lines else None


class _JsonLines:
    """An object a line; fields that are none of a document's own are its metadata, unless it has `metadata`."""

    def __init__(self, text: Text, columns: Columns) -> None:
        self._text = text
        self._id = columns.id

    def __iter__(self) -> Iterator[Line]:
        while (line := self._text.line()) is not None:
            if not line.data.isspace():
                yield _line(line.number, line.data, partial(self._document, line))

    def _document(self, line: TextLine) -> Document:
        if line.too_long:
            raise _too_long()
        try:
            fields = json.loads(_decoded(line.data))
        except json.JSONDecodeError as error:
            raise _Bad("invalid_message", f"no JSON: {error}") from None
        except RecursionError:
            raise _Bad("too_large", "the line is nested too deep") from None
        if not isinstance(fields, dict):
            raise _Bad("invalid_message", f"a {type(fields).__name__}, not an object")
        return _json_document(fields, self._id)


def _json_document(fields: dict[str, Any], id_field: str) -> Document:
    found = fields.get(id_field)
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found)
    if not isinstance(found, str) or not found:
        raise _Bad("invalid_argument", f"no string or integer {id_field!r}")
    own = _OWN_FIELDS | {id_field}
    metadata = fields.get("metadata")
    if metadata is None:
        metadata = {name: value for name, value in fields.items() if name not in own}
    content, if_version = fields.get("content"), fields.get("if_version")
    return Document(found, _vector(fields.get("vector")), content, metadata, if_version)


class _CsvRecords:
    """A record that can't be read (a quote that isn't closed, text after one) loses its first line, and reading goes on
    with the next: one stray quote doesn't swallow the lines after it.
    """

    def __init__(self, text: Text, columns: Columns) -> None:
        csv.field_size_limit(LINE_BYTES)
        self._text = text
        self._columns = columns
        self._taken: list[TextLine] = []
        self._taken_bytes = 0
        self._reader = csv.reader(self._feed(), strict=True)
        self._header = self._read_header()
        self._cells = [(name, self._reading(name)) for name in self._header]

    def _read_header(self) -> list[str]:
        try:
            header = next(self._reader, [])
        except (csv.Error, _Bad) as error:
            raise WrongColumns(f"its header can't be read: {error}") from None
        if not header:
            raise WrongColumns("it has no header")
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise WrongColumns(f"its header has {', '.join(map(repr, twice))} more than once")
        for name in sorted({self._columns.id} | self._columns.numbers | self._columns.lists):
            if name not in header:
                raise WrongColumns(f"it has no column {name!r}; it has {', '.join(map(repr, header))}")
        self._taken, self._taken_bytes = [], 0
        return header

    def _reading(self, name: str) -> Callable[[str], Any]:
        if name in self._columns.numbers:
            return partial(_number, name)
        if name in self._columns.lists:
            return lambda cell: [part.strip() for part in cell.split("|") if part.strip()]
        return str

    def _feed(self) -> Iterator[str]:
        return _Feed(self._next_line)

    def _next_line(self) -> str | None:
        line = self._text.line()
        if line is None:
            return None
        self._taken.append(line)
        self._taken_bytes += len(line.data)
        if line.too_long or self._taken_bytes > LINE_BYTES:
            raise _too_long()
        return line.data.decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[Line]:
        while True:
            self._taken, self._taken_bytes = [], 0
            try:
                cells = next(self._reader, None)
            except _Bad as bad:
                yield self._unreadable(bad.fault)
            except csv.Error as error:
                yield self._unreadable(Fault("invalid_message", f"no CSV: {error}"))
            else:
                if cells is None:
                    return
                if cells:
                    data = b"".join(line.data for line in self._taken)
                    number = self._taken[0].number
                    yield _line(number, data, partial(self._document, cells, data))

    def _unreadable(self, fault: Fault) -> Line:
        first, *others = self._taken
        self._text.push_back(others)
        return Line(first.number, first.data, fault)

    def _document(self, cells: list[str], data: bytes) -> Document:
        _decoded(data)
        if len(cells) != len(self._header):
            raise _Bad("invalid_message", f"{len(cells)} cells; the header has {len(self._header)}")
        document_id, content, vector = "", None, None
        metadata = {}
        for (name, read), cell in zip(self._cells, cells, strict=True):
            if not cell:
                continue
            if name == self._columns.id:
                document_id = cell
            elif name == "content":
                content = cell
            elif name == "vector":
                vector = _vector(_vector_cell(cell))
            elif (value := read(cell)) not in (None, []):
                metadata[name] = value
        if not document_id:
            raise _Bad("invalid_argument", f"no {self._columns.id!r}")
        return Document(document_id, vector, content, metadata)


class _Feed:
    """What csv.reader takes lines from. No generator: it goes on after it has raised, or found the end and gone back."""

    def __init__(self, line: Callable[[], str | None]) -> None:
        self._line = line

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._line()
        if line is None:
            raise StopIteration
        return line


def _line(number: int, data: bytes, document: Callable[[], Document]) -> Line:
    try:
        found = document()
        # Encoded here, so that what can't be is this line's fault and not its command's.
        return Line(number, data, found, len(wire.pack(wire.document(found))))
    except _Bad as bad:
        return Line(number, data, bad.fault)
    except (TypeError, ValueError, OverflowError) as error:
        return Line(number, data, Fault("invalid_argument", f"can't be sent: {error}"))


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _Bad("invalid_message", f"no UTF-8: {error.reason} at byte {error.start}") from None


def _too_long() -> _Bad:
    return _Bad("too_large", f"more than {LINE_BYTES} bytes")


def _vector(value: Any) -> bytes | None:
    """Return a vector as it is on the wire: from an array of numbers, or base64 of little-endian float32."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
        if isinstance(value, list):
            return wire.vector_bytes(value)
    except (binascii.Error, TypeError, ValueError) as error:
        raise _Bad("invalid_vector", f"vector: {error}") from None
    raise _Bad("invalid_vector", "vector is neither an array of numbers nor base64")


def _vector_cell(cell: str) -> Any:
    if not cell.lstrip().startswith("["):
        return cell.strip()
    try:
        return json.loads(cell)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _Bad("invalid_vector", f"vector is no JSON: {error}") from None


def _number(name: str, cell: str) -> int | float | None:
    text = cell.strip()
    if not text:
        return None
    try:
        return int(text) if _INTEGER.fullmatch(text) else float(text.replace("_", "no digit"))
    except ValueError:
        raise _Bad("invalid_argument", f"{name} is {cell!r}, no number") from None

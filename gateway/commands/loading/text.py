"""Lines of a file, plain or gzipped, each with the position it begins at."""

from __future__ import annotations

import gzip
import io
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from hotindex.errors import HotindexError

LINE_BYTES = 4 << 20
"""The longest line, and CSV record: a document at the gateway's limit (1 MiB), its vector as JSON included."""
KEPT_BYTES = 1024
"""What is kept of a longer one, to be told of it."""

_BUFFER_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two lines: how many lines and uncompressed bytes lie before it."""

    line: int = 0
    offset_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line with its end; of one that is `too_long`, only the first bytes."""

    number: int
    data: bytes
    start: Position
    too_long: bool = False


class Text:
    """The lines of a file. Memory: one line, and what was pushed back.

    Reading raises HotindexError where the file can't be read on, which a damaged or incomplete gzip file can't.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        self._file = io.BufferedReader(io.FileIO(path), _BUFFER_BYTES)
        zipped = self._file.peek(len(_GZIP)).startswith(_GZIP)
        self._stream: IO[bytes] = (
            io.BufferedReader(gzip.GzipFile(fileobj=self._file), _BUFFER_BYTES) if zipped else self._file
        )
        self._seekable = not zipped
        self._next = Position()
        self._pushed_back: deque[TextLine] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def position(self) -> Position:
        """Where the next line begins."""
        return self._pushed_back[0].start if self._pushed_back else self._next

    @property
    def file_bytes(self) -> int:
        """How far the file itself was read: of a gzipped one, compressed bytes."""
        return self._file.tell()

    def line(self) -> TextLine | None:
        """Return the next line, or None at the end."""
        if self._pushed_back:
            return self._pushed_back.popleft()
        start = self._next
        data = self._read(LINE_BYTES + 1)
        if not data:
            return None
        size, too_long = len(data), len(data) > LINE_BYTES
        if too_long:
            rest = data
            while rest and not rest.endswith(b"\n"):
                rest = self._read(_BUFFER_BYTES)
                size += len(rest)
            data = data[:KEPT_BYTES]
        self._next = Position(start.line + 1, start.offset_bytes + size)
        if start.offset_bytes == 0:
            data = data.removeprefix(_BOM)
        return TextLine(start.line + 1, data, start, too_long)

    def push_back(self, lines: Sequence[TextLine]) -> None:
        """Have the latest lines read again."""
        self._pushed_back.extendleft(reversed(lines))

    def skip(self, to: Position, at_most_bytes: int) -> bool:
        """Go towards `to`; return whether it is reached. A plain file is there at once."""
        assert not self._pushed_back, "lines are skipped before any is pushed back"
        if self._seekable:
            self._stream.seek(to.offset_bytes)
            self._next = to
            return True
        left = to.offset_bytes - self._next.offset_bytes
        wanted = min(left, at_most_bytes)
        skipped = len(self._read_bytes(wanted))
        if skipped < wanted:
            raise self._unreadable("it ends before the place to continue at")
        self._next = Position(to.line if skipped == left else 0, self._next.offset_bytes + skipped)
        return skipped == left

    def _read(self, limit_bytes: int) -> bytes:
        try:
            return self._stream.readline(limit_bytes)
        except (OSError, EOFError, zlib.error) as error:
            raise self._unreadable(str(error)) from error

    def _read_bytes(self, size_bytes: int) -> bytes:
        try:
            return self._stream.read(size_bytes)
        except (OSError, EOFError, zlib.error) as error:
            raise self._unreadable(str(error)) from error

    def _unreadable(self, why: str) -> HotindexError:
        message = f"{self.path} can't be read beyond line {self._next.line}: {why}"
        return HotindexError("unreadable", message, retryable=False)

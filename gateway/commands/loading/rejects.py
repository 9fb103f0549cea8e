"""The file of lines that were not loaded: a JSON object each, `line` (its number), `code`, `reason`, `text`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from gateway.commands.loading.checkpoint import writing
from gateway.commands.loading.formats import Fault, Line


class Rejects:
    """Made with the first line that is written. Raises HotindexError where it can't be."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        """Keep the first bytes of what an interrupted load wrote."""
        self.path = path
        self.size_bytes = 0
        self._file: IO[bytes] | None = None
        if not path.is_file():
            return
        with writing(path):
            # Never made longer: who took lines out of it meanwhile wants no zeros in their place.
            self.size_bytes = min(keep_bytes, path.stat().st_size)
            if self.size_bytes:
                os.truncate(path, self.size_bytes)
            else:
                path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            with writing(self.path):
                self._file.close()

    def write(self, rejected: Iterable[tuple[Line, Fault]]) -> None:
        with writing(self.path):
            for line, fault in rejected:
                if self._file is None:
                    self._file = self.path.open("ab")
                self.size_bytes += self._file.write(_entry(line, fault))

    def sync(self) -> None:
        """Put what was written on disk."""
        if self._file is not None:
            with writing(self.path):
                self._file.flush()
                os.fsync(self._file.fileno())


def _entry(line: Line, fault: Fault) -> bytes:
    text = line.data.decode("utf-8", "backslashreplace").rstrip("\r\n")
    entry = {"line": line.number, "code": fault.code, "reason": fault.reason, "text": text}
    return json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

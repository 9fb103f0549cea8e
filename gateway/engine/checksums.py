"""Checksums of files, computed ahead of their use where that is known: reading a large one is a good part of a start."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

_BLOCK_BYTES = 1 << 22

Checksum: TypeAlias = Callable[[Path], tuple[int, int]]
"""Returns size and CRC-32 of a file. Raises OSError."""


def checksum(path: Path) -> tuple[int, int]:
    size = crc = 0
    block = bytearray(_BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            size += count
            crc = zlib.crc32(memoryview(block)[:count], crc)
    return size, crc


class Ahead:
    """Computes the checksums of some files in a thread, beside whatever else goes on; of others when asked."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._known: dict[Path, tuple[int, int]] = {}
        self._paths = set(paths)
        self._thread = threading.Thread(target=self._compute, args=(paths,), name="checksums", daemon=True)
        self._thread.start()

    def _compute(self, paths: Sequence[Path]) -> None:
        for path in paths:
            try:
                self._known[path] = checksum(path)
            except OSError:
                continue  # whoever needs it learns of it

    def __call__(self, path: Path) -> tuple[int, int]:
        if path in self._paths:
            self._paths.remove(path)
            self._thread.join()
            if path in self._known:
                return self._known.pop(path)
        return checksum(path)


def newest_graphs(data_dir: Path) -> list[Path]:
    """Return the newest graph of each collection under `data_dir`, the largest first."""
    newest = [max(found) for folder in data_dir.glob("collections/*") if (found := list(folder.glob("graph-*.hnsw")))]
    return sorted(newest, key=lambda path: -path.stat().st_size)

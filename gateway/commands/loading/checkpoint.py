"""The progress file: how far a load has come, so that a later one goes on there.

It is replaced as a whole (temporary file, fsync, rename), and only after what it speaks of: lines acknowledged by the
gateway, and rejects on disk. What came after it is done again, which upserts bear.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from hotindex import HotindexError

from gateway.commands.loading.text import Position

_FORMAT = 1
_HEAD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a file from another version of it; `head_crc32` is of its first 64 KiB."""

    size_bytes: int
    mtime_ns: int
    head_crc32: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Raises OSError."""
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return cls(status.st_size, status.st_mtime_ns, zlib.crc32(file.read(_HEAD_BYTES)))


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the lines."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: int = 0

    @property
    def documents(self) -> int:
        return self.inserted + self.updated + self.unchanged

    def plus(self, statuses: Mapping[str, int], rejected: int) -> Counts:
        return Counts(
            self.inserted + statuses["inserted"],
            self.updated + statuses["updated"],
            self.unchanged + statuses["unchanged"],
            self.rejected + rejected,
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything up to `position` was acknowledged by the collection's life `epoch`, or is in the rejects file.

    `reading` says how lines were read: the options of the command that decide what document a line is.
    """

    collection: str
    url: str
    file: Identity
    reading: dict[str, Any]
    rejects: str
    epoch: str | None = None
    position: Position = field(default_factory=Position)
    counts: Counts = field(default_factory=Counts)
    rejects_bytes: int = 0

    def of(self, epoch: str | None) -> Checkpoint:
        """Return the same for one life of the collection, None where there is none yet."""
        return replace(self, epoch=epoch)

    def differs(self, wanted: Checkpoint) -> str | None:
        """Tell why the load `wanted`, of which nothing is done yet, can't go on from here; None where it can."""
        if self.collection != wanted.collection:
            return f"it was of a load into {self.collection!r}"
        if self.file != wanted.file:
            return "the file has changed"
        if self.reading != wanted.reading:
            return "lines are to be read in another way"
        if self.epoch != wanted.epoch:
            return f"{self.collection!r} is not the collection it was: it was dropped, or restored from a backup"
        return None

    def continued(self, wanted: Checkpoint) -> Checkpoint:
        """Return `wanted` as far as it is done. A rejects file of another name begins empty."""
        kept_bytes = self.rejects_bytes if self.rejects == wanted.rejects else 0
        return replace(wanted, position=self.position, counts=self.counts, rejects_bytes=kept_bytes)


class Unreadable(Exception):
    """A progress file is damaged, or of another version."""


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, durably. Raises HotindexError, and then leaves what was there."""
    temporary = path.with_name(f"{path.name}.new")
    with writing(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump({"hotindex_load": _FORMAT, **asdict(checkpoint)}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove the file, if it is there. Raises HotindexError."""
    with writing(path):
        path.unlink(missing_ok=True)


def read(path: Path) -> Checkpoint | None:
    """Read a file, if it is there. Raises Unreadable, and OSError."""
    try:
        fields = json.loads(path.read_bytes())
        if fields.pop("hotindex_load") != _FORMAT:
            raise Unreadable("it is of another version")
        typed = {"file": Identity, "position": Position, "counts": Counts}
        return Checkpoint(**{name: typed[name](**value) if name in typed else value for name, value in fields.items()})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Unreadable("it is damaged, or no progress file") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell what the disk doesn't take as a HotindexError."""
    try:
        yield
    except OSError as error:
        raise HotindexError("unwritable", f"{path} can't be written: {error.strerror}", retryable=False) from error


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

"""The data directory: one process at a time, one folder per collection."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.engine import snapshot
from gateway.errors import StartupError

_DROPPED = ".dropped-"


class DataDirectory:
    """Made by `locked`, and valid inside it."""

    def __init__(self, path: Path) -> None:
        self._collections = path / "collections"

    def names(self) -> list[str]:
        """Return the names of the collections there are."""
        return sorted(entry.name for entry in self._entries() if not entry.name.startswith("."))

    def _entries(self) -> Iterator[Path]:
        """Yield the folders; a file is none of ours."""
        return (entry for entry in self._collections.iterdir() if entry.is_dir())

    def collection(self, name: str) -> Path:
        return self._collections / name

    def drop(self, name: str, epoch: str) -> None:
        """Remove a collection's folder; after a crash in here it is either whole or gone."""
        doomed = self._collections / f"{_DROPPED}{epoch}"
        os.rename(self.collection(name), doomed)
        shutil.rmtree(doomed)

    def copying(self, name: str) -> Path:
        """Return where a copy of a collection is made; `sweep` removes what a crash left of it."""
        return self._collections / f".copying-{name}"

    def put_in_place(self, name: str) -> None:
        """Let a finished copy take the place of what there is of a collection. After a crash in here it isn't there, or is
        what it was before, or what it is now.
        """
        if self.collection(name).exists():
            doomed = self._collections / f"{_DROPPED}{name}"
            os.rename(self.collection(name), doomed)
            shutil.rmtree(doomed)
        os.rename(self.copying(name), self.collection(name))
        snapshot.sync_directory(self._collections)

    def sweep(self) -> None:
        """Finish what a crash interrupted: drops, and collections being made."""
        for entry in self._entries():
            if entry.name.startswith("."):
                shutil.rmtree(entry)


@contextmanager
def locked(path: Path) -> Iterator[DataDirectory]:
    """Create `path` if need be, and hold its lock. Raises StartupError if it can't be used."""
    try:
        (path / "collections").mkdir(parents=True, exist_ok=True)
        lock = (path / "LOCK").open("a+b")
    except OSError as error:
        raise StartupError(f"data directory {str(path)!r} can't be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartupError(f"data directory {str(path)!r} is in use by another hotindex process") from None
        yield DataDirectory(path)

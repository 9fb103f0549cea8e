"""A collection being copied from another node: a store that fills up, without an index until it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from gateway.engine import database, lineage
from gateway.engine.lineage import Lineage
from gateway.engine.lives import Starts
from gateway.engine.plan import Turnover
from gateway.engine.replay import Copy
from gateway.engine.store import STORE_FILE, Store
from gateway.engine.types import Spec
from gateway.engine.writer import Writer
from gateway.errors import StorageUnavailable


class _NoIndex:
    """An index is made of the whole store at once, by all cores."""

    def apply(self, turnover: Turnover, index_version: int) -> None:
        pass


class Copying:
    """Methods block, belong to one thread at a time, and raise StorageUnavailable."""

    def __init__(self, directory: Path, spec: Spec, epoch: str, now: Callable[[], int]) -> None:
        """Begin with nothing in `directory`; what is there goes."""
        self._directory = directory
        try:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
        except OSError as error:
            raise StorageUnavailable(f"can't copy collection {spec.name!r}: {error}") from error
        database.create(directory / STORE_FILE, spec, epoch)
        self._store = Store(directory / STORE_FILE)
        self._writer = Writer(self._store, _NoIndex(), now, 0)

    @property
    def index_version(self) -> int:
        return self._store.index_version

    def adopt(self, copy: Copy) -> None:
        self._writer.adopt(copy)

    def finish(self, term: int, starts: Starts, purged_through: int) -> None:
        """Make it a collection that can be opened: what was agreed on in `term`, the last of `starts`. Who resumes from
        before `purged_through` has to start over.
        """
        self._store.begin_term(term, starts)
        self._store.raise_floor(purged_through, 0)
        epoch, index_version = self._store.epoch, self._store.index_version
        self._store.checkpoint()
        self._store.close()
        try:
            lineage.write(self._directory, Lineage(epoch, index_version))
        except OSError as error:
            raise StorageUnavailable(f"can't finish a copy: {error}") from error

    def abandon(self) -> None:
        """Remove what there is."""
        self._store.close()
        shutil.rmtree(self._directory, ignore_errors=True)

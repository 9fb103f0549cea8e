"""What a load has done, in memory, in the rejects file and, a moment later, in the progress file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.commands.loading import checkpoint
from gateway.commands.loading.checkpoint import Checkpoint
from gateway.commands.loading.formats import Chunk
from gateway.commands.loading.rejects import Rejects
from gateway.commands.loading.sending import Outcome

SAVE_EVERY_S = 1.0


class Ledger:
    """A context manager: however a load ends, the progress file says how far it came; `finish` removes it.

    Raises HotindexError where the disk doesn't take it.
    """

    def __init__(self, path: Path, rejects: Rejects, begin: Checkpoint, clock: Callable[[], float]) -> None:
        self.path = path
        self.begin = self.now = begin
        self.file_bytes = 0
        """How far the file itself was read for what is settled."""
        self._rejects = rejects
        self._clock = clock
        self._saved = begin
        self._saved_at = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.now is not self._saved:
            self._save()

    def settle(self, chunk: Chunk, outcome: Outcome, epoch: str | None) -> None:
        """Note what became of the next chunk, and in which life of the collection."""
        self._rejects.write(outcome.rejected)
        self.file_bytes = chunk.file_bytes
        self.now = replace(
            self.now,
            epoch=epoch,
            position=chunk.end,
            counts=self.now.counts.plus(outcome.statuses, len(outcome.rejected)),
            rejects_bytes=self._rejects.size_bytes,
        )
        if self._clock() >= self._saved_at + SAVE_EVERY_S:
            self._save()

    def finish(self) -> None:
        """The file is loaded."""
        self._rejects.sync()
        checkpoint.remove(self.path)
        self._saved = self.now

    def _save(self) -> None:
        self._rejects.sync()
        checkpoint.write(self.path, self.now)
        self._saved = self.now
        self._saved_at = self._clock()

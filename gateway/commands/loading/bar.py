"""What a terminal shows of a load."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from gateway.commands.loading.ledger import Ledger
from gateway.commands.loading.sending import Patience


class _Waiting(ProgressColumn):
    """What is waited for. It asks for itself: while nothing is acknowledged, nobody updates the bar."""

    def __init__(self, patience: Patience) -> None:
        super().__init__()
        self._patience = patience

    def render(self, task: Task) -> Text:  # noqa: ARG002
        failing = self._patience.failing
        return Text(f"waiting: {failing.code}" if failing else "")


class Bar:
    """A bar by bytes of the file; where standard output is no terminal, nothing."""

    def __init__(self, file: Path, patience: Patience, ledger: Ledger) -> None:
        self._ledger = ledger
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            _Waiting(patience),
        )
        console = Console(file=sys.stdout)
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        name = f"{file.name} → {ledger.begin.collection}"
        self._task = self._progress.add_task(name, total=ledger.begin.file.size_bytes, told="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self) -> None:
        counts, before = self._ledger.now.counts, self._ledger.begin.counts
        elapsed_s = self._progress.tasks[0].elapsed or 1e-9
        rate = (counts.documents - before.documents) / elapsed_s
        told = f"{counts.documents} documents, {rate:.0f}/s, {counts.rejected} rejected"
        self._progress.update(self._task, completed=self._ledger.file_bytes, told=told)

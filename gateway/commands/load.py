"""`hotindex load`."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import typer
from hotindex import Ack, Backoff, Client, Document, HotindexError, NotFound
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gateway.commands.common import complete
from gateway.commands.loading import checkpoint
from gateway.commands.loading.bar import Bar
from gateway.commands.loading.checkpoint import Checkpoint, Identity
from gateway.commands.loading.formats import Chunk, Columns, Format, Line, Records, WrongColumns
from gateway.commands.loading.ledger import Ledger
from gateway.commands.loading.rejects import Rejects
from gateway.commands.loading.sending import Patience, Sender, epoch, in_order
from gateway.commands.loading.text import Position, Text

SOME_REJECTED = 3
"""The exit status where lines were rejected."""

_COMMAND_S = 60.0
_SKIPPED_AT_ONCE_BYTES = 16 << 20
_FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv"}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command was told."""

    url: str
    collection: str
    file: Path
    form: Format | None
    columns: Columns
    batch: int
    rejects: Path | None
    progress: Path | None
    restart: bool
    give_up_s: float


def run(options: Options) -> None:
    """Load a file. Raises BadParameter, HotindexError, and Exit where lines were rejected."""
    if options.file.exists() and not options.file.is_file():
        raise typer.BadParameter(f"{str(options.file)!r} is no file that can be read twice")
    form = options.form or _format_of(options.file)
    if form == "jsonl" and options.columns.numbers | options.columns.lists:
        raise typer.BadParameter("--numbers and --lists are for CSV; JSON has numbers and lists of its own")
    try:
        identity, text = Identity.of(options.file), Text(options.file)
    except OSError as error:
        raise typer.BadParameter(f"{str(options.file)!r} can't be read: {error.strerror}") from None
    with text:
        try:
            records = Records(text, form, options.columns)
        except WrongColumns as error:
            raise typer.BadParameter(f"{str(options.file)!r} can't be loaded: {error}") from None
        wanted = Checkpoint(
            options.collection,
            options.url,
            identity,
            {"format": form, **options.columns.as_json()},
            str(_output(options.file, options.rejects, "rejects.jsonl")),
        )
        complete(_load(options, wanted, records))


def _format_of(file: Path) -> Format:
    suffix = (Path(file.stem) if file.suffix == ".gz" else file).suffix
    if suffix not in _FORMATS:
        raise typer.BadParameter(f"{str(file)!r} doesn't say by its name what it is; give --format jsonl or csv")
    return _FORMATS[suffix]


def _output(file: Path, given: Path | None, suffix: str) -> Path:
    """Return where to write: as told, or beside the file, or, where that can't be, in the working directory."""
    name = f"{file.name}.{suffix}"
    path = (given or (file.with_name(name) if os.access(file.parent, os.W_OK) else Path(name))).absolute()
    if path == file.absolute():
        raise typer.BadParameter(f"{str(path)!r} is the file to load")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{str(path.parent)!r} is no directory")
    if path.is_dir():
        raise typer.BadParameter(f"{str(path)!r} is a directory")
    return path


async def _load(options: Options, wanted: Checkpoint, records: Records) -> None:
    progress_path = _output(options.file, options.progress, "progress.json")
    if str(progress_path) == wanted.rejects:
        raise typer.BadParameter(f"{str(progress_path)!r} can't be both, progress and rejects")
    patience = Patience(options.give_up_s, Backoff(), time.monotonic)
    ask_epoch = partial(patience.persist, partial(epoch, options.url, options.collection))
    async with Client(options.url, timeout_s=min(_COMMAND_S, options.give_up_s)) as client:
        wanted = wanted.of(await ask_epoch())
        begin = None if options.restart else _continued(progress_path, wanted)
        if begin is None:
            # Before the rejects it speaks of.
            checkpoint.remove(progress_path)
        sender = Sender(client, options.collection, patience, secrets.token_hex(8))
        with Rejects(Path(wanted.rejects), begin.rejects_bytes if begin else 0) as rejects:
            ledger = Ledger(progress_path, rejects, begin or wanted, time.monotonic)
            with Bar(options.file, patience, ledger) as bar, ledger:
                await _skip(records, ledger.begin.position)
                started = time.perf_counter()
                try:
                    await _send(records, options.batch, sender, ledger, bar, ask_epoch)
                except asyncio.CancelledError:
                    _note(f"interrupted after line {ledger.now.position.line}; the same command goes on there")
                    raise
                ledger.finish()
    _summarise(ledger, time.perf_counter() - started)


def _continued(path: Path, wanted: Checkpoint) -> Checkpoint | None:
    """Return where to go on, if the same load was begun before."""
    try:
        saved = checkpoint.read(path)
    except OSError as error:
        raise typer.BadParameter(f"{str(path)!r} can't be read: {error.strerror}") from None
    except checkpoint.Unreadable as error:
        # It may be something else, named by mistake.
        raise typer.BadParameter(f"{str(path)!r} is not replaced: {error}") from None
    if saved is None:
        return None
    if why := saved.differs(wanted):
        _note(f"beginning anew, for {path} is of no use: {why}")
        return None
    _note(
        f"continuing after line {saved.position.line}, with {saved.counts.documents} documents loaded, as {path} says"
    )
    if saved.rejects != wanted.rejects and saved.counts.rejected:
        _note(f"the {saved.counts.rejected} lines rejected so far are in {saved.rejects}")
    return saved.continued(wanted)


def _note(text: str) -> None:
    print(f"hotindex: {text}", file=sys.stderr)


async def _skip(records: Records, to: Position) -> None:
    while to.offset_bytes and not await asyncio.to_thread(records.skip, to, _SKIPPED_AT_ONCE_BYTES):
        pass


async def _send(
    records: Records,
    batch: int,
    sender: Sender,
    ledger: Ledger,
    bar: Bar,
    ask_epoch: Callable[[], Coroutine[Any, Any, str | None]],
) -> None:
    life = ledger.begin.epoch
    try:
        async with aclosing(in_order(partial(records.chunk, batch), sender.send)) as settled:
            async for chunk, outcome in settled:
                if life is None and outcome.statuses:
                    life = await ask_epoch()
                ledger.settle(chunk, outcome, life)
                bar.update()
    except NotFound:
        # Upserts make what isn't there: it was, and was dropped while they waited.
        raise _another_life(ledger) from None
    if life is not None and await ask_epoch() != life:
        raise _another_life(ledger)


def _another_life(ledger: Ledger) -> HotindexError:
    return HotindexError(
        "epoch_changed",
        f"{ledger.begin.collection!r} was dropped or restored from a backup meanwhile; load the file again",
        retryable=False,
    )


def _summarise(ledger: Ledger, seconds: float) -> None:
    counts = ledger.now.counts
    documents = counts.documents - ledger.begin.counts.documents
    where = f" ({ledger.now.rejects})" if counts.rejected else ""
    print(
        f"{counts.inserted} inserted, {counts.updated} updated, {counts.unchanged} unchanged, {counts.rejected} rejected"
        f"{where}; {seconds:.1f} s, {documents / seconds:.0f} documents/s"
    )
    print(f"{counts.documents} documents loaded into {ledger.now.collection}")
    if counts.rejected:
        raise typer.Exit(SOME_REJECTED)


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )


async def load(
    client: Client, collection: str, documents: Iterable[Document], batch: int, advance: Callable[[int], object]
) -> None:
    """Upsert documents in order, `batch` a command; `advance` is told how many each acknowledgement covers."""
    rows = iter(documents)

    def read() -> Chunk | None:
        lines = tuple(Line(0, b"", document) for document in islice(rows, batch))
        return Chunk(lines, Position(), 0) if lines else None

    async def send(chunk: Chunk) -> Ack:
        return await client.upsert(
            collection, [line.content for line in chunk.lines if isinstance(line.content, Document)]
        )

    async with aclosing(in_order(read, send)) as settled:
        async for chunk, _ in settled:
            advance(len(chunk.lines))

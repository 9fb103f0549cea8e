"""`hotindex load`."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import typer
from hotindex import Ack, Client, Document
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gateway.commands.common import complete

IN_FLIGHT = 4
"""Commands on their way at once: one is embedded and one committed while the next are read and sent."""

_OWN_FIELDS = frozenset({"id", "vector", "content", "metadata", "if_version"})


def run(url: str, collection: str, file: Path, batch: int) -> None:
    complete(_load_file(url, collection, file, batch))


async def _load_file(url: str, collection: str, file: Path, batch: int) -> None:
    try:
        documents = list(read(file))
    except OSError as error:
        raise typer.BadParameter(f"{str(file)!r} can't be read: {error.strerror}") from None
    async with Client(url) as client:
        with progress_bar() as progress:
            task = progress.add_task(f"{file.name} → {collection}", total=len(documents))
            await load(client, collection, documents, batch, lambda count: progress.advance(task, count))
    typer.echo(f"{len(documents)} documents loaded into {collection}")


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )


async def load(
    client: Client, collection: str, documents: Iterable[Document], batch: int, advance: Callable[[int], object]
) -> None:
    """Upsert documents in order, `batch` a command; `advance` is told how many each acknowledgement covers."""
    under_way: deque[asyncio.Task[Ack]] = deque()
    remaining = iter(documents)
    try:
        while chunk := list(islice(remaining, batch)):
            under_way.append(asyncio.create_task(client.upsert(collection, chunk)))
            if len(under_way) == IN_FLIGHT:
                advance(len((await under_way.popleft()).results))
        while under_way:
            advance(len((await under_way.popleft()).results))
    finally:
        for task in under_way:
            task.cancel()


def read(file: Path) -> Iterator[Document]:
    """Yield the documents of a file of JSON lines, gzipped or not. Raises OSError, and BadParameter naming the line."""
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, 1):
            if text.strip():
                yield _document(text, f"{file.name}:{number}")


def _document(text: str, at: str) -> Document:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{at} is no JSON: {error}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("id"), str):
        raise typer.BadParameter(f"{at} must be an object with a string id")
    return document(fields)


def document(fields: dict[str, Any]) -> Document:
    """Return the document a JSON object stands for; fields that are none of a document's own are its metadata."""
    metadata = fields.get("metadata", {k: v for k, v in fields.items() if k not in _OWN_FIELDS})
    return Document(fields["id"], fields.get("vector"), fields.get("content"), metadata, fields.get("if_version"))

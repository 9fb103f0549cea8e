"""`hotindex watch`."""

from __future__ import annotations

import dataclasses

from hotindex import Client
from hotindex.types import Change
from rich.console import Console
from rich.live import Live
from rich.table import Table

from gateway.commands.common import complete, filter_from, line, show
from gateway.commands.search import table


def run(url: str, collection: str, text: str, k: int, where: str | None, *, as_json: bool) -> None:
    complete(_watch(url, collection, text, k, where, as_json=as_json))


async def _watch(url: str, collection: str, text: str, k: int, where: str | None, *, as_json: bool) -> None:
    async with Client(url) as client, client.watch(collection, text=text, k=k, filter=filter_from(where)) as watch:
        if as_json:
            async for change in watch:
                print(line(dataclasses.asdict(change, dict_factory=_given)), flush=True)
            return
        console = Console()
        if not console.is_terminal:
            async for change in watch:
                show(_answer(collection, change))
            return
        with Live(console=console, auto_refresh=False) as live:
            async for change in watch:
                live.update(_answer(collection, change), refresh=True)


def _given(fields: list[tuple[str, object]]) -> dict[str, object]:
    """Leave out what wasn't asked for."""
    return {name: value for name, value in fields if value is not None}


def _answer(collection: str, change: Change) -> Table:
    return table(change.results, f"{collection} at index_version {change.index_version}")

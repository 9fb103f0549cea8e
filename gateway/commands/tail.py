"""`hotindex tail`."""

from __future__ import annotations

import dataclasses

from hotindex import Client
from hotindex.types import Event, Reconnected, Reset, Update
from rich.console import Console
from rich.text import Text

from gateway.commands.common import complete, filter_from, line

_COLOURS = {"insert": "green", "update": "yellow", "refresh": "cyan", "delete": "red", "batch_complete": "blue"}


def run(url: str, collection: str, since: int | None, where: str | None, *, as_json: bool) -> None:
    complete(_tail(url, collection, since, where, as_json=as_json))


async def _tail(url: str, collection: str, since: int | None, where: str | None, *, as_json: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    async with Client(url) as client, client.subscribe(collection, since=since, filter=filter_from(where)) as updates:
        async for update in updates:
            if as_json:
                print(line(_fields(update)), flush=True)
            else:
                console.print(describe(update))


def _fields(update: Event) -> dict[str, object]:
    fields = {key: value for key, value in dataclasses.asdict(update).items() if value is not None}
    if not isinstance(update, Update):
        return {"event_type": type(update).__name__.lower(), **fields}
    return fields | {"timestamp": update.timestamp.isoformat(timespec="microseconds")}


def describe(update: Event) -> Text:
    """Return an update as a line for people."""
    if isinstance(update, Reset):
        return Text(f"reset: the whole collection follows (epoch {update.epoch})", "magenta")
    if isinstance(update, Reconnected):
        return Text("reconnected: what was missed follows", "magenta")
    assert isinstance(update, Update), "nothing else was asked for"
    kind = "left" if update.left else update.event_type
    what = line(update.metadata) if update.document_id else f"{update.count} changes"
    return Text.assemble(
        (f"{update.index_version:>9} ", "dim"),
        (f"{kind:<7} ", _COLOURS.get(update.event_type, "white")),
        (f"{update.document_id or ''} ", "bold"),
        what if update.event_type != "delete" else "",
    )

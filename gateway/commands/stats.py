"""`hotindex stats`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.table import Table

from gateway.commands import http
from gateway.commands.common import line, show

_MODEL = (
    ("model", "name"),
    ("calls", "calls"),
    ("failed", "failed_calls"),
    ("texts", "texts"),
    ("tokens", "tokens"),
    ("cost", "cost"),
    ("texts saved", "saved_texts"),
    ("tokens saved", "saved_tokens"),
    ("cost saved", "saved_cost"),
    ("waiting", "waiting"),
)
_COLLECTION = (
    ("collection", "name"),
    ("documents", "documents"),
    ("index_version", "index_version"),
    ("queued", "queued_documents"),
    ("texts unchanged", "unchanged_texts"),
    ("texts found", "found_texts"),
    ("subscribers", "subscribers"),
)


def run(http_url: str, *, as_json: bool) -> None:
    stats = http.ask(http_url, "/v1/stats")
    if as_json:
        typer.echo(line(stats))
        return
    typer.echo(f"node {stats['node']}, since its start")
    show(_table(_MODEL, stats["models"]))
    show(_table(_COLLECTION, stats["collections"]))


def _table(columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table()
    for title, field in columns:
        table.add_column(title, justify="left" if field == "name" else "right")
    for row in rows:
        table.add_row(*(_shown(row[field]) for _, field in columns))
    return table


def _shown(value: object) -> str:
    match value:
        case float():
            return f"{value:,.4f}".rstrip("0").rstrip(".")
        case int():
            return f"{value:,}"
        case _:
            return str(value)

"""What the client subcommands share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

_NO_TERMINAL_COLUMNS = 10_000


def filter_from(text: str | None) -> dict[str, Any] | None:
    """Parse a filter given on the command line."""
    if text is None:
        return None
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"--filter is {text!r}, which is no JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise typer.BadParameter(f"--filter is {text!r}; it must be a JSON object")
    return parsed


def either(text: str | None, user_id: str | None) -> None:
    """Check that one thing is asked for: what is near a text, or what is recommended to a user."""
    if (text is None) == (user_id is None):
        raise typer.BadParameter(f"give TEXT or --user, {'one of them' if text is None else 'and not both'}")


def complete(work: Coroutine[Any, Any, None]) -> None:
    """Run a subcommand to its end, or until Ctrl-C."""
    asyncio.run(work)


def show(table: Table) -> None:
    """Print a table: as wide as the terminal, or, where there is none, as it wants to be."""
    console = Console()
    if not console.is_terminal:
        console.width = _NO_TERMINAL_COLUMNS
    console.print(table)


def line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)

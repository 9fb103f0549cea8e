"""`hotindex watch`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

from hotindex import Client, NotFound
from hotindex.types import Change, Recommendation, RecommendationUpdate
from rich.console import Console
from rich.live import Live
from rich.table import Table

from gateway.commands.common import complete, either, filter_from, line, show
from gateway.commands.search import table

_Answer: TypeAlias = tuple[Change | RecommendationUpdate, str]
"""With its title."""


def run(
    url: str, collection: str, text: str | None, user_id: str | None, k: int, where: str | None, *, as_json: bool
) -> None:
    either(text, user_id)
    complete(_watch(url, collection, text, user_id, k, where, as_json=as_json))


async def _watch(
    url: str, collection: str, text: str | None, user_id: str | None, k: int, where: str | None, *, as_json: bool
) -> None:
    how: dict[str, Any] = {"k": k, "filter": filter_from(where)}
    async with Client(url) as client:
        if user_id is None:
            answers = _near(client, collection, text=text, **how)
        else:
            answers = _recommended(client, collection, user_id, **how)
        async with aclosing(answers):
            await _show(answers, as_json=as_json)


async def _near(client: Client, collection: str, **how: Any) -> AsyncGenerator[_Answer]:
    async with client.watch(collection, **how) as watch:
        async for change in watch:
            yield change, f"{collection} at index_version {change.index_version}"


async def _recommended(client: Client, collection: str, user_id: str, **how: Any) -> AsyncGenerator[_Answer]:
    async with client.recommendations(user_id, collection=collection, **how) as watch:
        async for update in watch:
            yield await _described(client, collection, update), f"{collection} for {user_id}"


async def _described(client: Client, collection: str, update: RecommendationUpdate) -> RecommendationUpdate:
    """Ask for the metadata of what came into the list, of which an update says no more than the id."""
    unknown = [one.id for one in update.results if one.metadata is None]
    found = await asyncio.gather(*(_metadata(client, collection, one) for one in unknown))
    metadata = dict(zip(unknown, found, strict=True))

    def described(items: Sequence[Recommendation]) -> tuple[Recommendation, ...]:
        return tuple(dataclasses.replace(one, metadata=metadata.get(one.id, one.metadata)) for one in items)

    return dataclasses.replace(update, added=described(update.added), results=described(update.results))


async def _metadata(client: Client, collection: str, document_id: str) -> dict[str, Any]:
    try:
        return (await client.get(collection, document_id)).metadata
    except NotFound:
        return {}  # it was deleted just now: a list without it follows


async def _show(answers: AsyncIterator[_Answer], *, as_json: bool) -> None:
    console = Console()
    if as_json:
        async for change, _ in answers:
            print(line(dataclasses.asdict(change, dict_factory=_given)), flush=True)
    elif not console.is_terminal:
        async for answer in answers:
            show(_table(answer))
    else:
        with Live(console=console, auto_refresh=False) as live:
            async for answer in answers:
                live.update(_table(answer), refresh=True)


def _given(fields: list[tuple[str, object]]) -> dict[str, object]:
    """Leave out what wasn't asked for."""
    return {name: value for name, value in fields if value is not None}


def _table(answer: _Answer) -> Table:
    change, title = answer
    return table(change.results, title)

"""`hotindex search`."""

from __future__ import annotations

from collections.abc import Sequence

from hotindex import Client
from hotindex.types import Hit, Match, Recommendation
from rich.table import Table

from gateway.commands.common import complete, either, filter_from, line, show


def run(
    url: str, collection: str, text: str | None, user_id: str | None, k: int, where: str | None, *, as_json: bool
) -> None:
    either(text, user_id)
    complete(_search(url, collection, text, user_id, k, where, as_json=as_json))


async def _search(
    url: str, collection: str, text: str | None, user_id: str | None, k: int, where: str | None, *, as_json: bool
) -> None:
    async with Client(url) as client:
        results = await client.search(collection, text=text, user_id=user_id, k=k, filter=filter_from(where))
    if as_json:
        for hit in results.hits:
            print(line({"id": hit.id, "score": hit.score, "version": hit.version, "metadata": hit.metadata}))
        return
    show(table(results.hits, f"{collection} at index_version {results.index_version}"))


def table(hits: Sequence[Hit | Match | Recommendation], title: str) -> Table:
    """Return search results as a table for people; where it is too narrow, metadata are cut."""
    if title and not hits:
        title += ": nothing found"
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    shown.add_column("score", justify="right", no_wrap=True, min_width=6)
    shown.add_column("id", no_wrap=True, min_width=max((len(hit.id) for hit in hits[:20]), default=2))
    beside = 12  # what the other columns take at the least: the title, which is as wide as the table, stays on a line
    wide = min(max(len("metadata"), len(title) - beside), 60)
    shown.add_column("metadata", overflow="ellipsis", no_wrap=True, min_width=wide)
    for hit in hits:
        shown.add_row(f"{hit.score:.3f}", hit.id, line(hit.metadata))
    return shown

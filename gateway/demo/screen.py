"""What the demo shows: a screen that changes on a terminal, plain lines elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gateway.commands.process import GatewayProcess
from gateway.commands.search import table
from gateway.commands.tail import describe
from gateway.demo import data
from gateway.demo.recommended import Recommended
from gateway.demo.replay import COLLECTION, Tally
from gateway.demo.watched import K, Watched, name

_RECENT = 2000
_COLOURS = {"+": "green", "↑": "yellow", "↓": "yellow"}

_OTHER_ROWS = 22
"""What is not the room's updates takes so many, with all frames."""


@dataclass(slots=True)
class Screen:
    """Renders a tally."""

    gateway: GatewayProcess
    started: float

    def rate(self, tally: Tally) -> float:
        return tally.acked / max(time.perf_counter() - self.started, 1e-9)

    def commands(self) -> str:
        """Return what to try from another shell."""
        ws, http = self.gateway.ws, self.gateway.http
        return (
            f"  .venv/bin/hotindex tail {COLLECTION} --url {ws}\n"
            f"  .venv/bin/hotindex search {COLLECTION} 'pirates' --url {ws}\n"
            f"  .venv/bin/hotindex watch {COLLECTION} '{data.WATCHED}' --url {ws}\n"
            f"  .venv/bin/hotindex watch {COLLECTION} --user {data.USER} --url {ws}\n"
            f"  curl -s {http}/v1/collections/{COLLECTION}/documents/movie:0133093\n"
            f"  curl -s {http}/metrics"
        )

    def line(self, tally: Tally) -> str:
        """Return the state in one plain line."""
        best = tally.answer.hits[0] if tally.answer and tally.answer.hits else None
        return (
            f"{self.rate(tally):6.0f} events/s  sent {tally.sent}  in the room {tally.received}"
            f"  freshness room {freshness(tally.in_room_s)}  search {freshness(tally.in_search_s)}"
            f"  best for {tally.query!r}: {best.metadata['name'] if best else '-'}"
        )

    def render(self, tally: Tally, height: int) -> RenderableType:
        """Return the state for a terminal of `height` rows."""
        figures = Text.assemble(
            ("events/s ", "dim"), f"{self.rate(tally):.0f}   ",
            ("sent ", "dim"), f"{tally.sent}   ",
            ("in the room ", "dim"), f"{tally.received}\n",
            ("event sent → in the room      ", "dim"), f"{freshness(tally.in_room_s)}\n",
            ("new vector sent → searchable  ", "dim"), f"{freshness(tally.in_search_s)}\n",
            ("event sent → watch told        ", "dim"), f"{freshness(tally.watched.told_s)}",
        )  # fmt: skip
        user = Text.assemble(
            (f"recommended to {tally.recommended.user_id} ", "dim"), tally.recommended.news, no_wrap=True
        )
        user.overflow = "ellipsis"
        latest = [*tally.latest][-max(1, height - _OTHER_ROWS) :]
        updates = Text("\n", no_wrap=True, overflow="ellipsis").join(describe(update) for update in latest)
        answer: RenderableType = table(tally.answer.hits, "") if tally.answer else ""
        return Group(
            Panel(Group(figures, user), title="hotindex demo: real ratings as hot events"),
            _watch(tally.watched),
            Panel(updates, title=f"the room of {COLLECTION!r}"),
            Panel(answer, title=f"search: {tally.query!r}"),
        )


def _watch(watched: Watched) -> Panel:
    shown = Table.grid(padding=(0, 1), expand=True)
    shown.add_column(width=1)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    for match in watched.results:
        mark = watched.marks.get(match.id, "")
        shown.add_row(mark, f"{match.score:.3f}", Text(name(match)), style=_COLOURS.get(mark))
    for _ in range(K - len(watched.results)):
        shown.add_row()
    return Panel(
        shown, title=f"watch: {watched.text!r}, {watched.differences} differences", subtitle=Text(watched.news)
    )


def news(watched: Watched) -> str:
    """Return a watch's latest difference, or first answer, in one plain line."""
    return f'watch "{watched.text}": {watched.news}'


def news_of(user: Recommended) -> str:
    """Return what is recommended to a user, in one plain line."""
    return f"recommended to {user.user_id}: {user.news}"


def freshness(times_s: Sequence[float]) -> str:
    """Return p50 and p99 of the latest times."""
    recent = times_s[-_RECENT:]
    if len(recent) < 2:
        return "p50 -, p99 -"
    cuts = statistics.quantiles(recent, n=100, method="inclusive")
    return f"p50 {cuts[49] * 1e3:.2f} ms, p99 {cuts[98] * 1e3:.2f} ms"


def summarise(console: Console, tally: Tally, loaded: int, load_s: float) -> None:
    watched, user = tally.watched, tally.recommended
    rows = [
        f"loaded            {loaded} movies in {load_s:.1f} s, embedded, committed and searchable",
        f"events            {tally.sent} sent, {tally.acked} acknowledged, {tally.received} received in the room",
        f"sent → room       {freshness(tally.in_room_s)}",
        f"sent → searchable {freshness(tally.in_search_s)}"
        f" ({tally.found} of {tally.probed} new vectors found by the first search after the acknowledgement)",
        f"sent → watch      {freshness(watched.told_s)}"
        f" (of {len(watched.told_s)} differences, each from the oldest event that it tells of)",
        f"watch             {watched.differences} differences in the {K} nearest to {watched.text!r};"
        f" at the end they are{'' if watched.agrees else ' NOT'} those of an exact search",
        f"recommended       {user.changes} changes in the {len(user.ids)} for {user.user_id}, after {user.ratings} ratings;"
        f" at the end they are{'' if user.agrees else ' NOT'} those of a search",
    ]
    console.print("\n".join(rows), highlight=False, markup=False, soft_wrap=True)

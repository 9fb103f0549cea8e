"""What the demo shows: a screen that changes on a terminal, plain lines elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from gateway.commands.process import GatewayProcess
from gateway.commands.search import table
from gateway.commands.tail import describe
from gateway.demo.replay import COLLECTION, Tally

_RECENT = 2000


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

    def render(self, tally: Tally) -> RenderableType:
        figures = Text.assemble(
            ("events/s ", "dim"), f"{self.rate(tally):.0f}   ",
            ("sent ", "dim"), f"{tally.sent}   ",
            ("in the room ", "dim"), f"{tally.received}\n",
            ("event sent → in the room       ", "dim"), f"{freshness(tally.in_room_s)}\n",
            ("new vector sent → searchable    ", "dim"), f"{freshness(tally.in_search_s)}",
        )  # fmt: skip
        updates = Text("\n", no_wrap=True, overflow="ellipsis").join(describe(update) for update in tally.latest)
        answer: RenderableType = table(tally.answer.hits, "") if tally.answer else ""
        return Group(
            Panel(figures, title="hotindex demo: real ratings as hot events"),
            Panel(updates, title=f"the room of {COLLECTION!r}"),
            Panel(answer, title=f"search: {tally.query!r}"),
        )


def freshness(times_s: Sequence[float]) -> str:
    """Return p50 and p99 of the latest times."""
    recent = times_s[-_RECENT:]
    if len(recent) < 2:
        return "p50 -, p99 -"
    cuts = statistics.quantiles(recent, n=100, method="inclusive")
    return f"p50 {cuts[49] * 1e3:.2f} ms, p99 {cuts[98] * 1e3:.2f} ms"


def summarise(console: Console, tally: Tally, loaded: int, load_s: float) -> None:
    rows = [
        f"loaded            {loaded} movies in {load_s:.1f} s, embedded, committed and searchable",
        f"events            {tally.sent} sent, {tally.acked} acknowledged, {tally.received} received in the room",
        f"sent → room       {freshness(tally.in_room_s)}",
        f"sent → searchable {freshness(tally.in_search_s)}"
        f" ({tally.found} of {tally.probed} new vectors found by the first search after the acknowledgement)",
    ]
    console.print("\n".join(rows), highlight=False)

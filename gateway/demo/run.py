"""`hotindex demo`: a gateway, a real catalogue, real events, and a look at what they do."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import tempfile
import time
from pathlib import Path

import typer
from hotindex import Client, Document
from rich.console import Console, RenderableType
from rich.live import Live

from gateway.commands.load import load, progress_bar
from gateway.commands.process import GatewayProcess
from gateway.demo import data
from gateway.demo.replay import COLLECTION, Replay
from gateway.demo.screen import Screen, news, news_of, summarise

_PLAIN_EVERY_S = 2.0
_BATCH = 256


def run(seconds: float | None, rate: float, ws_port: int, http_port: int) -> None:
    """Run the demo; ends with status 1 if an event did not come to the room or was not found, or a list is wrong."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="hotindex-demo-") as folder:
        data_dir = Path(folder)
        flags = ["--ws-port", str(_free(ws_port)), "--http-port", str(_free(http_port)), "--log-level", "warning"]
        console.print("starting a gateway …")
        with GatewayProcess(data_dir, flags) as gateway:
            console.print(
                f"gateway at {gateway.ws} and {gateway.http}, data in {data_dir}", highlight=False, soft_wrap=True
            )
            complete = asyncio.run(_demo(console, gateway, seconds, rate))
    raise typer.Exit(0 if complete else 1)


def _free(port: int) -> int:
    """Return `port`, or 0 for any where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port


async def _demo(console: Console, gateway: GatewayProcess, seconds: float | None, rate: float) -> bool:
    movies = data.movies()
    load_s = await _load(console, gateway.ws, movies)
    in_lines = not console.is_terminal

    def tell(line: str) -> None:
        if in_lines:
            _print(console, line)

    replay = Replay(movies, rate, lambda watched: tell(news(watched)), lambda user: tell(news_of(user)))
    tally = replay.tally
    screen = Screen(gateway, time.perf_counter())
    console.print(f"try from another shell; Ctrl-C ends:\n{screen.commands()}", highlight=False, soft_wrap=True)
    replaying = asyncio.create_task(replay.run(gateway.ws, seconds))
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, replaying.cancel)
    try:
        await (_lines if in_lines else _live)(console, screen, replay, replaying)
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await replaying
    summarise(console, tally, len(movies), load_s)
    told = tally.sent == tally.acked == tally.received and tally.found == tally.probed
    return told and tally.watched.agrees and tally.recommended.agrees


async def _load(console: Console, url: str, movies: list[Document]) -> float:
    """Load the catalogue; return the time from the first byte sent to the last movie searchable."""
    started = time.perf_counter()
    async with Client(url) as client:
        with progress_bar() if console.is_terminal else contextlib.nullcontext() as progress:
            if progress:
                task = progress.add_task("loading the catalogue", total=len(movies))
                await load(client, COLLECTION, movies, _BATCH, lambda count: progress.advance(task, count))
            else:
                await load(client, COLLECTION, movies, _BATCH, lambda _: None)
    load_s = time.perf_counter() - started
    console.print(f"{len(movies)} movies loaded in {load_s:.1f} s", highlight=False)
    return load_s


async def _live(console: Console, screen: Screen, replay: Replay, replaying: asyncio.Task[None]) -> None:
    def picture() -> RenderableType:
        return screen.render(replay.tally, console.height)

    with Live(picture(), console=console, auto_refresh=False, screen=False) as live:
        while not replaying.done():
            await asyncio.wait([replaying], timeout=0.25)
            live.update(picture(), refresh=True)


async def _lines(console: Console, screen: Screen, replay: Replay, replaying: asyncio.Task[None]) -> None:
    while not replaying.done():
        await asyncio.wait([replaying], timeout=_PLAIN_EVERY_S)
        _print(console, screen.line(replay.tally))


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)

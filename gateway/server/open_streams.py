"""The answers that go on for as long as who asked is there: of rooms, and of what other nodes follow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from gateway.server.streams import EventStream

_STOP_S = 1.0


class OpenStreams:
    """Call on the event loop, between `start` and `stop`. What they send keeps them alive every `ping_interval_s`."""

    def __init__(self, ping_interval_s: float) -> None:
        self._ping_interval_s = ping_interval_s
        self._streams: dict[EventStream, asyncio.Task[Any] | None] = {}
        self._keepalive: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._streams)

    def start(self) -> None:
        self._keepalive = asyncio.create_task(self._keep_alive(), name="keepalive of streams")

    async def stop(self) -> None:
        """End the streams, and close those that take no end."""
        if self._keepalive is not None:
            self._keepalive.cancel()
        for stream in self._streams:
            stream.end()
        if answering := [task for task in self._streams.values() if task is not None]:
            await asyncio.wait(answering, timeout=_STOP_S)
        for stream in self._streams:
            stream.abandon()

    @contextmanager
    def open(self, stream: EventStream) -> Iterator[None]:
        """Keep a stream that the present task answers with."""
        self._streams[stream] = asyncio.current_task()
        try:
            yield
        finally:
            del self._streams[stream]

    async def pump(self, request: web.Request, response: web.StreamResponse, stream: EventStream) -> None:
        """Send what comes until the stream ends, or who asked is gone."""
        with self.open(stream):
            try:
                await response.prepare(request)
                await stream.pump(response.write)
            except ConnectionError:
                pass  # gone before the answer

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._ping_interval_s)
            for stream in list(self._streams):
                stream.keep_alive()

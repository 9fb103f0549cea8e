"""A TCP proxy that cuts, silences and delays what passes it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from tests.ports import HOST, free_port

_CHUNKS = 1024


@dataclass(slots=True)
class _Way:
    """What happens to bytes in one direction."""

    silent: bool = False
    delay_s: float = 0.0
    bytes_seen: int = 0


class Proxy:
    """Call on the event loop. It passes everything on until told otherwise; the port stays the same."""

    def __init__(self, target_port: int, target_host: str = HOST) -> None:
        self.target = target_host, target_port
        self.port = free_port()
        self._to_server, self._to_client = _Way(), _Way()
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._subscribers: set[asyncio.StreamWriter] = set()
        self._muted: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        await self.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def resume(self) -> None:
        """Pass everything on, and let connections in."""
        for way in (self._to_server, self._to_client):
            way.silent, way.delay_s = False, 0.0
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, HOST, self.port)

    def cut(self) -> None:
        """Reset all connections, and refuse new ones."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.reset()

    def reset(self) -> None:
        """Reset all connections; new ones are let in."""
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()

    def silence(self, *, to_server: bool = False) -> None:
        """Keep connections open and swallow what the server says, and with `to_server` what it is told."""
        self._to_client.silent = True
        self._to_server.silent = to_server

    def mute_subscribers(self) -> int:
        """Swallow, for good, what the server says on connections that have subscribed to something by now, which stay
        open; return how many these are. Others, and later ones, aren't affected.
        """
        self._muted |= self._subscribers
        return len(self._subscribers)

    def delay(self, to_server_s: float = 0.0, to_client_s: float = 0.0) -> None:
        """Let each chunk arrive later, in order."""
        self._to_server.delay_s = to_server_s
        self._to_client.delay_s = to_client_s

    @property
    def bytes_to_server(self) -> int:
        """What clients sent, whether or not it was passed on."""
        return self._to_server.bytes_seen

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        pumps: list[asyncio.Task[None]] = []
        try:
            answers, upstream = await asyncio.open_connection(*self.target)
            ends.append(upstream)
            self._writers.add(upstream)
            pumps = [
                asyncio.create_task(self._pump(reader, upstream, self._to_server, writer)),
                asyncio.create_task(self._pump(answers, writer, self._to_client, writer)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the target is down, so this connection ends, as it would without a proxy
        finally:
            for pump in pumps:
                pump.cancel()
            self._subscribers.discard(writer)
            self._muted.discard(writer)
            for end in ends:
                self._writers.discard(end)
                end.transport.abort()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: _Way, client: asyncio.StreamWriter
    ) -> None:
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS)
        writing = asyncio.create_task(self._write(chunks, writer, way))
        loop = asyncio.get_running_loop()
        try:
            while data := await reader.read(1 << 16):
                way.bytes_seen += len(data)
                if way is self._to_server and b"SUBSCRIBE" in data.upper():
                    self._subscribers.add(client)
                if not way.silent and not (way is self._to_client and client in self._muted):
                    await chunks.put((loop.time() + way.delay_s, data))
        except OSError:
            pass  # reset by one side, which ends the other
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, chunks: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, way: _Way) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await chunks.get()
            await asyncio.sleep(due - loop.time())
            if not way.silent:
                writer.write(data)
                await writer.drain()


class ThreadedProxy:
    """A proxy on a loop and a thread of its own, for tests without a loop."""

    def __init__(self, target_port: int, target_host: str = HOST) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._proxy = Proxy(target_port, target_host)

    def __enter__(self) -> Self:
        self._thread.start()
        self.resume()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._proxy.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def port(self) -> int:
        return self._proxy.port

    def resume(self) -> None:
        self._call(self._proxy.resume())

    def cut(self) -> None:
        self._do(self._proxy.cut)

    def reset(self) -> None:
        self._do(self._proxy.reset)

    def silence(self, *, to_server: bool = False) -> None:
        self._do(partial(self._proxy.silence, to_server=to_server))

    def delay(self, to_server_s: float = 0.0, to_client_s: float = 0.0) -> None:
        self._do(partial(self._proxy.delay, to_server_s, to_client_s))

    def _do(self, change: Callable[[], None]) -> None:
        async def changed() -> None:
            change()

        self._call(changed())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

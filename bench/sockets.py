"""WebSocket clients that cost as little as possible, so that a benchmark measures the server."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import cast
from urllib.parse import urlsplit

_HEADER_END = b"\r\n\r\n"


def client_frame(payload: bytes, *, binary: bool) -> bytes:
    """Return a frame masked with zeros: masking is for proxies, and costs the same to take off."""
    first = 0x82 if binary else 0x81
    size = len(payload)
    if size < 126:
        header = bytes((first, 0x80 | size))
    elif size < 1 << 16:
        header = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        header = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return header + b"\0\0\0\0" + payload


def frames(data: bytes | bytearray) -> Iterator[tuple[bytes, int]]:
    """Yield the payload of each whole data frame of a server, and where it ends; control frames are passed over."""
    at = 0
    while len(data) - at >= 2:
        size, start = data[at + 1], at + 2
        if size == 126:
            size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif size == 127:
            size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        end = start + size
        if len(data) < end:
            return
        if data[at] & 0x0F in (1, 2):
            yield bytes(data[start:end]), end
        at = end


class RawSocket(asyncio.Protocol):
    """Parses frames in the transport's callback; `on_message` is called with each payload."""

    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        self._on_message = on_message
        self._buffer = bytearray()
        self.opened = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    @classmethod
    async def connect(cls, url: str, on_message: Callable[[bytes], None], subprotocol: str = "") -> RawSocket:
        address = urlsplit(url)
        loop = asyncio.get_running_loop()
        host, port = address.hostname or "", address.port or 80
        _, socket = await loop.create_connection(lambda: cls(on_message), host, port)
        key = base64.b64encode(os.urandom(16)).decode()
        offer = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
        socket.transport.write(
            f"GET / HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n".encode()
        )
        await socket.opened
        return socket

    def send(self, payload: bytes, *, binary: bool = True) -> None:
        """Send a frame."""
        self.transport.write(client_frame(payload, binary=binary))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.opened.done():
            head, end, rest = self._buffer.partition(_HEADER_END)
            if not end:
                return
            if b" 101 " not in head.split(b"\r\n")[0]:
                self.opened.set_exception(ConnectionError(bytes(head).decode()))
                return
            self._buffer = bytearray(rest)
            self.opened.set_result(None)
        self._parse()

    def _parse(self) -> None:
        taken = 0
        for payload, end in frames(self._buffer):
            self._on_message(payload)
            taken = end
        del self._buffer[:taken]


class Arrivals:
    """When event number n (0, 1, …) has come to all of `parties`, each of which gets every event once and in order."""

    def __init__(self, parties: int) -> None:
        self.complete_at: dict[int, float] = {}
        self._parties = parties
        self._missing: dict[int, int] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}

    def party(self, marker: Callable[[int], bytes]) -> Callable[[bytes], None]:
        """Return what one party calls with each event; `marker` says what event n has to contain."""
        numbers = itertools.count()

        def arrived(payload: bytes) -> None:
            number = next(numbers)
            if marker(number) not in payload:
                raise AssertionError(f"event {number} expected, got {payload[:300]!r}")
            missing = self._missing.pop(number, self._parties) - 1
            if missing:
                self._missing[number] = missing
                return
            self.complete_at[number] = time.perf_counter()
            waiting = self._waiting.pop(number, None)
            if waiting is not None:
                waiting.set_result(None)

        return arrived

    async def complete(self, number: int) -> None:
        """Wait until all have had event `number`."""
        if number not in self.complete_at:
            waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
            await waiting

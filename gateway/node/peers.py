"""Other nodes, over HTTP: what one asks of another."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import aiohttp
import msgspec

from gateway.engine.replay import Copy
from gateway.node import exchange
from gateway.node.exchange import CopyCall, Failure, Greeting, Refused

PATH = "/v1/peer"
CHECKSUM = "X-Checksum"
"""The header with the CRC-32 of an answer."""

REFUSED = 422
"""The status of an answer that is a Failure."""

SILENCE_S = 75.0
"""A relay sends an empty frame now and then; one that sends nothing for so long is gone."""

_CONNECT_S = 2.0
_TOO_LARGE = 413
KEPT_ALIVE = "X-Kept-Alive"
"""The header of an answer that took long: frames as a relay's, empty ones while it was awaited, and then one that holds
a byte (0: an answer, 1: a Failure), the CRC-32 of what follows, big-endian, and that.
"""
ALIVE_S = 2.0
_SILENT_S = 10.0

_AT_ONCE = aiohttp.ClientTimeout(total=5.0, sock_connect=_CONNECT_S)
"""For what somebody waits for, and another node can answer as well."""
_TIMEOUTS = {
    **dict.fromkeys(("info", "get", "search"), _AT_ONCE),
    # Texts may have to be embedded: that takes as long as it takes, while the node is alive.
    "commit": aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENT_S),
}

_GREETED_S = 5.0
_CLOSED_S = 1.0

_T = TypeVar("_T")
_COPY = msgspec.msgpack.Decoder(Copy)


class PeerFailed(Exception):
    """A node didn't answer, or not with what it was asked for; another may. `in_doubt`: it may have done it yet."""

    def __init__(self, reason: str, *, in_doubt: bool = True) -> None:
        super().__init__(reason)
        self.in_doubt = in_doubt


class PeerRefused(Exception):
    """A node answered with an error."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class PeerClient:
    """Call on the event loop; `close` comes last. A call takes `timeout_s` at most."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(_CONNECT_S, timeout_s))
        self._session: aiohttp.ClientSession | None = None
        self._streams: aiohttp.ClientSession | None = None
        """For connections that stay, some for each collection: calls mustn't wait for one of them to end."""

    async def close(self) -> None:
        for session in (self._session, self._streams):
            if session is not None:
                await session.close()

    async def copy(self, http: str, collection: str, call: CopyCall) -> Copy:
        """Return a page of the net change. Raises PeerFailed; PeerRefused where the node doesn't reach back so far."""
        return _decoded(http, await self.call(http, collection, "copy", exchange.encode(call)), _COPY.decode)

    async def call(self, http: str, collection: str, name: str, body: bytes) -> bytes:
        """Return what a node answers. Raises PeerFailed, PeerRefused."""
        url = f"{http}{PATH}/{collection}/{name}"
        timeout = _TIMEOUTS.get(name, self._timeout)
        with _failures(url):
            async with self._opened().post(url, data=body, timeout=timeout) as response:
                answer = await response.read()
                if KEPT_ALIVE in response.headers:
                    return _late(url, answer)
                if response.status == REFUSED:
                    raise PeerRefused(_decoded(url, answer, exchange.decode_failure))
                if response.status == _TOO_LARGE:
                    raise PeerRefused(Failure("too_large", f"{len(body)} bytes are more than a node takes at once"))
                if response.status != 200 or response.headers.get(CHECKSUM) != str(zlib.crc32(answer)):
                    shown = answer[:200].decode(errors="replace")
                    raise PeerFailed(f"{url} answered {response.status}, {shown!r}")
                return answer

    async def relay(self, http: str, collection: str, since: int, epoch: str) -> AsyncIterator[bytes]:
        """Yield frames of a node's room until it ends or is silent for too long. Raises PeerFailed, PeerRefused."""
        url = f"{http}{PATH}/{collection}/relay"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=SILENCE_S)
        buffer = bytearray()
        with _failures(url):
            async with self._opened_streams().post(
                url, data=exchange.encode((since, epoch)), timeout=timeout
            ) as response:
                if response.status == REFUSED:
                    raise PeerRefused(_decoded(url, await response.read(), exchange.decode_failure))
                if response.status != 200:
                    raise PeerFailed(f"{url} answered {response.status}")
                async for piece in response.content.iter_any():
                    buffer += piece
                    for frame in exchange.relayed(buffer):
                        if frame:
                            yield frame
        raise PeerFailed(f"{url}: it has ended")

    async def watches(self, http: str, collection: str, greeting: Greeting) -> PeerChannel:
        """Return a channel to a node that has answered a greeting. Raises PeerFailed, PeerRefused."""
        url = f"{http}{PATH}/{collection}/watches"
        with _failures(url):
            async with asyncio.timeout(_CONNECT_S):
                timeouts = aiohttp.ClientWSTimeout(ws_receive=_SILENT_S, ws_close=_CLOSED_S)
                socket = await self._opened_streams().ws_connect(url, timeout=timeouts, max_msg_size=0)
        channel = PeerChannel(http, socket)
        try:
            async with asyncio.timeout(_GREETED_S):
                await channel.send(exchange.encode(greeting))
                answer = _decoded(url, await anext(channel.frames), exchange.decode_lent)
            if isinstance(answer, Refused):
                raise PeerRefused(answer.failure)
        except TimeoutError:
            await channel.close()
            raise PeerFailed(f"{url} says nothing") from None
        except BaseException:
            await channel.close()
            raise
        return channel

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        return self._session

    def _opened_streams(self) -> aiohttp.ClientSession:
        if self._streams is None:
            self._streams = aiohttp.ClientSession(timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0))
        return self._streams


class PeerChannel:
    """Messages to a node, and frames from it, in order. `close` comes last."""

    def __init__(self, http: str, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.http = http
        self._socket = socket
        self._buffer = bytearray()
        self._closed = False
        self.frames = self._frames()
        """Those that come until it is closed from here. Raises PeerFailed where it ends, or is silent for too long."""

    async def send(self, message: bytes) -> None:
        """Send a message; return once there is room for the next. Raises PeerFailed."""
        with _failures(self.http):
            await self._socket.send_bytes(message)

    async def _frames(self) -> AsyncIterator[bytes]:
        while not self._closed:
            for frame in exchange.relayed(self._buffer):
                if frame:
                    yield frame
            with _failures(self.http):
                message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                self._buffer += message.data
            elif not self._closed:
                raise PeerFailed(f"{self.http}: watches have ended")

    async def close(self) -> None:
        self._closed = True
        await self._socket.close()


def late(answer: bytes, *, failed: bool) -> bytes:
    """Return the frame that ends an answer that took long."""
    payload = bytes([failed]) + zlib.crc32(answer).to_bytes(4, "big") + answer
    return len(payload).to_bytes(exchange.LENGTH_BYTES, "big") + payload


def _late(url: str, body: bytes) -> bytes:
    payloads = [payload for payload in exchange.relayed(bytearray(body)) if payload]
    if len(payloads) != 1 or payloads[0][1:5] != zlib.crc32(payloads[0][5:]).to_bytes(4, "big"):
        raise PeerFailed(f"{url} broke off")
    answer = payloads[0][5:]
    if payloads[0][0]:
        raise PeerRefused(_decoded(url, answer, exchange.decode_failure))
    return answer


@contextmanager
def _failures(url: str) -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise PeerFailed(f"{url}: {error}", in_doubt=False) from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise PeerFailed(f"{url}: {type(error).__name__} {error}") from None


def _decoded(url: str, body: bytes, decode: Callable[[bytes], _T]) -> _T:
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PeerFailed(f"{url} sent something else: {error}") from None

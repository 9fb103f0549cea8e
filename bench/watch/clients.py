"""Connections that ask, and are told: one code for producers, watchers and the room, so that it costs each the same."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import msgspec

from bench.sockets import RawSocket

Message: TypeAlias = dict[str, Any]

CONNECTIONS = 32
_PATIENCE_S = 120.0
_SUBPROTOCOL = "hotindex.v1.msgpack"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Connection:
    """Sends commands, and has `on_push` called with each push and when its frame was read."""

    def __init__(self, on_push: Callable[[Message, float], None] | None = None) -> None:
        self._on_push = on_push
        self._refs = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._socket: RawSocket

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, url: str, on_push: Callable[[Message, float], None] | None = None
    ) -> AsyncIterator[Connection]:
        one = cls(on_push)
        one._socket = await RawSocket.connect(url, one._take, _SUBPROTOCOL)
        try:
            yield one
        finally:
            one._socket.transport.abort()

    def ask(self, **command: object) -> asyncio.Future[Message]:
        """Send a command; return its reply to be. An error reply raises RuntimeError there."""
        ref = next(self._refs)
        reply = self._waiting[ref] = asyncio.get_running_loop().create_future()
        self._socket.send(_encode({**command, "ref": ref}))
        return reply

    async def ask_all(self, commands: Sequence[Message], at_once: int = 64) -> list[Message]:
        """Send commands, so many of them unanswered at a time; return the replies in the order of the commands."""
        replies: list[Message] = []
        async with asyncio.timeout(_PATIENCE_S):
            for start in range(0, len(commands), at_once):
                replies += await asyncio.gather(*(self.ask(**one) for one in commands[start : start + at_once]))
        return replies

    def _take(self, payload: bytes) -> None:
        at = time.perf_counter()
        message = _decode(payload)
        if "ref" not in message:
            if self._on_push is not None and message["type"] != "connected":
                self._on_push(message, at)
        elif message["type"] == "error":
            self._waiting.pop(message["ref"]).set_exception(RuntimeError(f"the gateway refused: {message}"))
        else:
            self._waiting.pop(message["ref"]).set_result(message)


async def paced(count: int, rate: float) -> AsyncIterator[tuple[int, float]]:
    """Yield numbers at a rate, and when each was due, whatever becomes of those before."""
    started = time.perf_counter()
    for number in range(count):
        due = started + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield number, due


async def settled(done: Callable[[], int], wanted: int, patience_s: float = 10.0) -> None:
    """Wait until `done` is what is wanted, or hasn't grown for a while: what is missing then is lost."""
    before, since = done(), time.perf_counter()
    while before < wanted and time.perf_counter() - since < patience_s:
        await asyncio.sleep(0.05)
        if done() > before:
            before, since = done(), time.perf_counter()


def dealt(things: Sequence[Any], hands: int = CONNECTIONS) -> list[Sequence[Any]]:
    """Deal things out in turn."""
    return [things[start::hands] for start in range(hands)]

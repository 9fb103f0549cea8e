"""Recommendations told to the users' sockets: from an interaction sent to the new list received, through a gateway.

All users of the real ratings are watched, over a few connections; the ratings come in their order, at a steady rate, as
interactions. Beside it, in the same run and at the same rate: a client that asks for the list after each acknowledgement.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from hotindex import Client, Document

from bench.harness import Percentiles
from bench.sockets import RawSocket
from gateway.commands.load import load
from gateway.commands.process import GatewayProcess
from gateway.demo import data

COLLECTION = "movies"
WARM_UP = 1000
_CONNECTIONS = 32
_MSGPACK = "hotindex.v1.msgpack"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


@dataclass(frozen=True, slots=True)
class Figures:
    """Of as many `users` watched; `told` from an interaction sent to its list received, `asked` by asking for it."""

    users: int
    rate: float
    told: Percentiles
    asked: Percentiles
    opened_s: float


@dataclass(frozen=True, slots=True)
class Rating:
    user: str
    item: str
    value: int


class _Audience:
    """Watches users; notes when the next list of each comes."""

    def __init__(self) -> None:
        self.came: dict[str, asyncio.Future[float]] = {}
        self._opened = 0
        self._all_open = asyncio.get_running_loop().create_future()
        self._wanted = 0
        self._sockets: list[RawSocket] = []

    async def open(self, url: str, users: Sequence[str]) -> None:
        self._wanted = len(users)
        for start in range(_CONNECTIONS):
            socket = await RawSocket.connect(url, self._take, _MSGPACK)
            self._sockets.append(socket)
            for user in users[start::_CONNECTIONS]:
                socket.send(_encode({"action": "watch", "collection": COLLECTION, "user_id": user, "k": 10}))
        await self._all_open

    def close(self) -> None:
        for socket in self._sockets:
            socket.transport.close()

    def _take(self, payload: bytes) -> None:
        message = _decode(payload)
        if message["type"] == "recommendation_update":
            waiting = self.came.pop(message["user_id"], None)
            if waiting is not None:
                waiting.set_result(time.perf_counter())
        elif message["type"] == "watching":
            self._opened += 1
            if self._opened == self._wanted:
                self._all_open.set_result(None)
        else:
            assert message["type"] == "connected", message


class _Producer:
    """Sends commands; `replies` come by ref."""

    def __init__(self) -> None:
        self._refs = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.socket: RawSocket

    async def open(self, url: str) -> None:
        self.socket = await RawSocket.connect(url, self._take, _MSGPACK)

    def ask(self, command: dict[str, object]) -> asyncio.Future[Any]:
        ref = next(self._refs)
        reply = self._waiting[ref] = asyncio.get_running_loop().create_future()
        self.socket.send(_encode({**command, "ref": ref}))
        return reply

    def _take(self, payload: bytes) -> None:
        message = _decode(payload)
        if "ref" in message:
            self._waiting.pop(message["ref"]).set_result(message)


def ratings() -> list[Rating]:
    """Return the real ratings in order of time."""
    return [Rating(row["user_id"], row["item_id"], row["rating"]) for row in data._rows("ratings")]


def measure(rate: float, count: int) -> Figures:
    """Measure `count` interactions at `rate` a second, with all users of the ratings watched."""
    with tempfile.TemporaryDirectory(prefix="hotindex-bench-") as folder:
        flags = ["--ws-port", "0", "--http-port", "0", "--log-level", "warning"]
        with GatewayProcess(Path(folder), flags) as gateway:
            return asyncio.run(_measure(gateway.ws, rate, count))


async def _measure(url: str, rate: float, count: int) -> Figures:
    all_ratings = ratings()
    async with Client(url) as client:
        await load(client, COLLECTION, _movies(), 256, lambda _: None)
    producer, audience = _Producer(), _Audience()
    await producer.open(url)
    await asyncio.gather(*(producer.ask(_interaction(one)) for one in all_ratings[:WARM_UP]))
    users = list(dict.fromkeys(one.user for one in all_ratings))
    started = time.perf_counter()
    await audience.open(url, users)
    opened_s = time.perf_counter() - started
    told = await _told(producer, audience, all_ratings[WARM_UP : WARM_UP + count], rate)
    audience.close()
    asked = await _asked(producer, all_ratings[WARM_UP + count : WARM_UP + 2 * count], rate)
    producer.socket.transport.close()
    return Figures(len(users), rate, Percentiles.of(told), Percentiles.of(asked), opened_s)


def _movies() -> list[Document]:
    return data.movies()


def _interaction(rating: Rating) -> dict[str, object]:
    return {
        "type": "user_interaction",
        "collection": COLLECTION,
        "user_id": rating.user,
        "action": "rate",
        "value": rating.value,
        "item_id": rating.item,
    }


async def _told(producer: _Producer, audience: _Audience, chosen: Sequence[Rating], rate: float) -> list[float]:
    """A list that comes is that of the user's first interaction it was waited for: what comes together is told once."""
    waits: list[asyncio.Task[float]] = []

    async def one(rating: Rating) -> float:
        sent = time.perf_counter()
        waiting = audience.came.setdefault(rating.user, asyncio.get_running_loop().create_future())
        reply = producer.ask(_interaction(rating))
        came = await waiting
        await reply
        return came - sent

    async for rating in _paced(chosen, rate):
        waits.append(asyncio.create_task(one(rating)))
    return list(await asyncio.gather(*waits))


async def _asked(producer: _Producer, chosen: Sequence[Rating], rate: float) -> list[float]:
    async def one(rating: Rating) -> float:
        sent = time.perf_counter()
        await producer.ask(_interaction(rating))
        await producer.ask({"action": "search", "collection": COLLECTION, "user_id": rating.user, "k": 10})
        return time.perf_counter() - sent

    waits = [asyncio.create_task(one(rating)) async for rating in _paced(chosen, rate)]
    return list(await asyncio.gather(*waits))


async def _paced(chosen: Sequence[Rating], rate: float):  # type: ignore[no-untyped-def]
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number, rating in enumerate(chosen):
        if (pause_s := began + number / rate - loop.time()) > 0:
            await asyncio.sleep(pause_s)
        yield rating


if __name__ == "__main__":
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    print(measure(200, 3000))

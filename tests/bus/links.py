"""Links to real servers, and ears on their channels."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from gateway.bus.link import Link, LinkLost, Script
from gateway.bus.subscriptions import Subscriptions

INCREMENT = Script("return redis.call('INCR', KEYS[1])")
_T = TypeVar("_T")


@asynccontextmanager
async def linked(url: str, timeout_s: float = 2.0) -> AsyncIterator[Link]:
    link = Link(url, timeout_s=timeout_s)
    try:
        await link.open()
        yield link
    finally:
        await link.close()


class Ear:
    """Subscriptions, and what they told: messages as (channel, text), "lost" and "resubscribed"."""

    def __init__(self, link: Link) -> None:
        self.heard: list[tuple[str, str] | str] = []
        self.fault: Exception | None = None
        self._news = asyncio.Event()
        self.subscriptions = Subscriptions(
            link, self._message, lambda: self._note("lost"), lambda: self._note("resubscribed"), random.Random(7).random
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    async def messages(self, count: int) -> list[str]:
        """Return the texts of all messages, once there are `count` of them."""
        await self.until(lambda: len(self._texts()) >= count)
        return self._texts()

    async def count(self, word: str, times: int = 1) -> None:
        await self.until(lambda: self.heard.count(word) >= times)

    def _texts(self) -> list[str]:
        return [entry[1] for entry in self.heard if isinstance(entry, tuple)]

    def _message(self, channel: str, data: bytes) -> None:
        self._note((channel, data.decode()))
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault

    def _note(self, entry: tuple[str, str] | str) -> None:
        self.heard.append(entry)
        self._news.set()


@asynccontextmanager
async def listening(link: Link) -> AsyncIterator[Ear]:
    ear = Ear(link)
    try:
        yield ear
    finally:
        await ear.subscriptions.close()


async def insisted(call: Callable[[], Awaitable[_T]]) -> _T:
    """Repeat a call while Redis can't be reached."""
    while True:
        try:
            return await call()
        except LinkLost:
            await asyncio.sleep(0.02)


async def raised(call: Callable[[], Awaitable[object]]) -> LinkLost:
    """Repeat a call until Redis can't serve it."""
    while True:
        try:
            await call()
        except LinkLost as lost:
            return lost

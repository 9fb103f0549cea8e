"""The messages that one Redis server publishes to us, over one connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from gateway.bus.wire import LinkLost, LinkRefused, Wire
from gateway.faults import internal


@dataclass(frozen=True, slots=True)
class Answer:
    """What Redis said to the `request` of that number, for a channel or for the end of one. After an `error`, which only
    the former can have, there is no subscription.
    """

    request: int
    channel: str
    subscribing: bool
    error: LinkLost | LinkRefused | None = None


class Feed:
    """Takes an open wire over. Call `subscribe` and `unsubscribe` from one task at a time.

    The callbacks are called in the order in which things came. After `ended` there are no more, after `close` none at all.
    """

    def __init__(
        self,
        wire: Wire,
        message: Callable[[str, bytes], None],
        answered: Callable[[Answer], None],
        ended: Callable[[Feed, LinkLost | LinkRefused], None],
        *,
        sharded: bool,
    ) -> None:
        self.node = wire.node
        self._wire = wire
        self._message = message
        self._answered = answered
        self._ended = ended
        self._verbs = ("SSUBSCRIBE", "SUNSUBSCRIBE") if sharded else ("SUBSCRIBE", "UNSUBSCRIBE")
        # Redis answers in order, and an error doesn't say which channel it is about.
        self._unanswered: deque[Answer] = deque()
        self._reading = asyncio.create_task(self._read(), name=f"redis feed {wire.node}")

    async def subscribe(self, channel: str, request: int) -> None:
        """Ask for a channel. Raises LinkLost."""
        self._unanswered.append(Answer(request, channel, subscribing=True))
        await self._wire.send(self._verbs[0], channel)

    async def unsubscribe(self, channel: str, request: int) -> None:
        """Ask for the end of a subscription. Raises LinkLost."""
        self._unanswered.append(Answer(request, channel, subscribing=False))
        await self._wire.send(self._verbs[1], channel)

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        await self._wire.close()

    async def _read(self) -> None:
        reason: LinkLost | LinkRefused
        try:
            while True:
                await self._read_one()
        except (LinkLost, LinkRefused) as error:
            reason = error
        except Exception as error:  # a callback's: as the message is lost, so is all that depends on it
            internal(error, server=str(self.node))
            reason = LinkLost(f"a fault of ours ({self.node})")
        self._ended(self, reason)

    async def _read_one(self) -> None:
        try:
            kind, name, value = await self._wire.next()
        except (LinkLost, LinkRefused) as error:
            if not (self._wire.connected and self._unanswered and self._unanswered[0].subscribing):
                raise
            self._answered(replace(self._unanswered.popleft(), error=error))
            return
        channel = name.decode()
        if kind.endswith(b"message"):
            self._message(channel, value)
            return
        said = channel, kind.upper().decode() == self._verbs[0]
        if not self._unanswered or said != (self._unanswered[0].channel, self._unanswered[0].subscribing):
            # A server of a cluster says so when it no longer owns the channel's slot.
            raise LinkLost(f"{kind.decode()} {channel} unasked for ({self.node})")
        self._answered(self._unanswered.popleft())

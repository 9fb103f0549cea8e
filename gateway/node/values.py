"""What goes into a node and comes out of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gateway.engine.types import Done
from gateway.errors import HotindexError
from gateway.ingest.queue import Bounds
from gateway.node.upkeep import HotLimits, Timing
from gateway.protocol import messages
from gateway.push.events import Variant
from gateway.push.room import RoomLimits, Subscriber
from gateway.users.actions import VOCABULARY, Vocabulary
from gateway.users.profile import MEMORY, Memory


@dataclass(frozen=True, slots=True)
class Options:
    """What the node needs to know of the settings."""

    node: str
    default_collection: str
    timing: Timing
    idempotency_window_s: float
    embedding_cache_bytes: int
    read_wait_s: float
    cores: int
    hot: HotLimits
    bounds: Bounds
    room: RoomLimits
    writes_per_s: float = 0.0
    """Documents a second that may be written to a collection here; 0 is no limit."""
    vocabulary: Vocabulary = VOCABULARY
    memory: Memory = MEMORY


@dataclass(frozen=True, slots=True)
class Ticket:
    """A write on its way: `outcome` tells how it ended."""

    collection: str
    outcome: asyncio.Future[Done | HotindexError]

    async def done(self) -> Done:
        """Wait for the outcome; raises the HotindexError that kept the write from being applied."""
        outcome = await asyncio.shield(self.outcome)
        if isinstance(outcome, HotindexError):
            raise outcome
        return outcome


@dataclass(frozen=True, slots=True)
class Membership:
    """A subscription as it began."""

    variant: Variant
    index_version: int
    recovered: bool
    epoch: str
    join: Callable[[], Subscriber]
    """Lets the pushes begin; to be called once, right after the reply was written."""

    @property
    def collection(self) -> str:
        return self.variant.collection

    def reply(self) -> messages.Subscribed:
        return messages.Subscribed(
            collection=self.collection,
            index_version=self.index_version,
            epoch=self.epoch,
            recovered=self.recovered,
        )

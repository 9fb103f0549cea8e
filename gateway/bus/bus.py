"""What puts a collection's commits in order, on one node or on many."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.engine.plan import WriteOutcome
from gateway.engine.types import Applied, Done, Write
from gateway.errors import HotindexError


@dataclass(frozen=True, slots=True)
class UnderWay:
    """Another node has the write; `done` will say how it ends. Until then no other on its documents may follow."""

    done: asyncio.Future[Done | HotindexError]


class Listener(Protocol):
    """Learns of every commit, in order, before its writers do. Called on the event loop; must not block or raise."""

    @property
    def wants_vectors(self) -> bool:
        """Whether to load the vectors of all changed documents, to pass them on."""
        ...

    def publish(self, applied: Applied) -> None: ...

    def renewed(self) -> None:
        """The collection has another public epoch from now on."""
        ...


class Bus(Protocol):
    """One collection's order of commits, which is the same on every node that hosts it.

    Order: index_versions are taken without gaps, and every node applies every change in their order. What one call of
    `commit` is given is applied in that order; one call runs at a time.

    Guarantee: a write is applied to exactly the state it was planned against, as far as its own documents go, or planned
    anew; never to another base, never twice. When `commit` returns, what it says is done is on this node's disk, in its
    next search, and published. Other nodes have it a moment later, or, if they are away, when they are back.

    Called on the event loop, between `start` and `stop`.
    """

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def commit(self, writes: Sequence[Write]) -> Sequence[WriteOutcome | UnderWay]:
        """Apply `writes`, each whole or not at all; return how each ended. A HotindexError means that it wasn't applied,
        save StorageUnavailable from a bus that lost its connection meanwhile: that write may yet be.
        """
        ...

    @property
    def gather_s(self) -> float:
        """How long writes should gather before the next call of `commit`, for all nodes' sake."""
        ...

    @property
    def fault(self) -> str | None:
        """Why writes fail at present, if they do."""
        ...

    async def probe(self) -> None:
        """Look whether what was a fault still is one."""
        ...

"""What nodes that share a collection have agreed on, and what they ask of each other when they haven't."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.bus import scripts
from gateway.bus.link import Link, LinkRefused
from gateway.engine.replay import Copy


class Diverged(Exception):
    """What this node holds isn't what the others agreed on, or can't be brought up to it step by step: it has to be copied
    anew. What it alone holds came after `agreed`.
    """

    def __init__(self, reason: str, agreed: int) -> None:
        super().__init__(reason)
        self.agreed = agreed


class NoPeer(Exception):
    """No other node has what is missing here, at present."""


class Peers(Protocol):
    """The other nodes that host a collection."""

    def expected(self, collection: str) -> int:
        """Return how many nodes, this one included, should say what they hold before the order is made anew."""
        ...

    async def dropped(self, epoch: str) -> bool:
        """Tell whether a life of a collection was dropped. Raises LinkLost, LinkRefused."""
        ...

    def copies(self, collection: str, epoch: str, term: int, after: int) -> AsyncIterator[Copy]:
        """Yield the net change after `after` in pages. Raises NoPeer, and Diverged where nobody reaches back so far."""
        ...


@dataclass(frozen=True, slots=True)
class Keys:
    """Where Redis has a collection; the braces put all in one slot."""

    state: str
    log: str
    recent: str
    claims: str
    channel: str

    @classmethod
    def of(cls, collection: str) -> Keys:
        base = f"hotindex:{{{collection}}}"
        return cls(f"{base}:state", f"{base}:log", f"{base}:recent", f"{base}:claims", f"{base}:changes")


@dataclass(frozen=True, slots=True)
class State:
    """What the nodes have agreed on: see `scripts`. `starts` are terms and the heads they began with."""

    epoch: str
    head: int
    floor: int
    term: int
    starts: tuple[tuple[int, int], ...]


async def read_state(link: Link, keys: Keys) -> State | None:
    """Return what Redis holds of a collection; None where that isn't valid. Raises LinkLost, LinkRefused."""
    reply = await link.run(scripts.STATE, [keys.state], [])
    if not reply or not reply[3]:
        return None
    epoch, head, floor, _, term, starts = reply
    try:
        pairs = [pair.split(":") for pair in starts.decode().split()]
        told = tuple((int(t), int(start)) for t, start in pairs)
        return State(epoch.decode(), int(head), int(floor), int(term), told)
    except (AttributeError, TypeError, ValueError) as error:
        raise LinkRefused(f"{keys.state} holds what no node has written: {error}") from None


async def forget(link: Link, keys: Keys, epoch: str) -> None:
    """Take a life that was dropped out of Redis. Raises LinkLost, LinkRefused."""
    await link.run(scripts.FORGET, [keys.state, keys.log, keys.recent, keys.claims], [epoch])


@dataclass(frozen=True, slots=True)
class Claim:
    """What a node says it holds, when Redis has lost the order."""

    origin: str
    index_version: int
    term: int
    starts: Sequence[tuple[int, int]]


async def restore(link: Link, keys: Keys, epoch: str, claim: Claim, expected: int, settle_s: float) -> bool:
    """Say what a node holds; tell whether the order goes on, which it does once `expected` nodes have said so, or after
    `settle_s`. Raises LinkLost, LinkRefused.
    """
    starts = "".join(f"{term}:{start} " for term, start in claim.starts)
    reply = await link.run(
        scripts.RESTORE,
        [keys.state, keys.log, keys.recent, keys.claims],
        [epoch, expected, int(settle_s * 1000), claim.origin, claim.index_version, claim.term, starts],
    )
    done: bool = reply[0] == b"done"
    return done

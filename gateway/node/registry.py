"""What nodes tell each other through Redis: who is there, and which collections there are. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import structlog

from gateway.engine.types import Spec
from gateway.errors import HotindexError
from gateway.node import companions

log = structlog.get_logger(__name__)

NODES = "hotindex:nodes"
COLLECTIONS = "hotindex:{collections}:lives"
DROPPED = "hotindex:{collections}:dropped"

_MISSED_S = 3.0
"""After as long without an answer to a heartbeat, Redis was away."""

_SPEC = msgspec.json.Decoder(Spec)


class Holding(msgspec.Struct, frozen=True):
    """How far a node is in a collection it hosts."""

    epoch: str
    term: int
    index_version: int
    documents: int


class Heartbeat(msgspec.Struct, frozen=True):
    """What a node says of itself. `origin` is another one in each of its lives; `hosts` are the collections it is to host
    (None: all).
    """

    origin: str
    name: str
    ws: str
    http: str
    holdings: dict[str, Holding]
    hosts: list[str] | None = None

    def serves(self, collection: str) -> bool:
        """Tell whether it hosts a collection, or would if there was one."""
        return collection in self.holdings or self.hosts is None or companions.owner(collection) in self.hosts


_HEARTBEAT = msgspec.json.Decoder(Heartbeat)


@dataclass(frozen=True, slots=True)
class Life:
    """A collection as it is registered: one of its lives."""

    epoch: str
    spec: Spec

    def encode(self) -> bytes:
        return self.epoch.encode() + b" " + msgspec.json.encode(self.spec)

    @classmethod
    def decode(cls, value: bytes) -> Life:
        epoch, _, spec = value.partition(b" ")
        return cls(epoch.decode(), _SPEC.decode(spec))


def lives(reply: Sequence[bytes]) -> dict[str, Life]:
    """Return the register of collections from an answer to HGETALL."""
    found: dict[str, Life] = {}
    for key, value in zip(reply[::2], reply[1::2], strict=True):
        try:
            name, life = key.decode(), Life.decode(value)
            companions.check_name(name)
        except (ValueError, HotindexError) as error:
            log.warning("not_a_collection", name=repr(key), reason=str(error))
            continue
        if life.spec.name == name:
            found[name] = life
        else:
            log.warning("not_a_collection", name=name, reason=f"it says it is {life.spec.name!r}")
    return found


class Neighbours:
    """The nodes that were heard of lately, this one included.

    Redis may forget them; who was heard of less than `patience_s` ago still counts. While Redis is away nobody is heard of,
    and time stands still.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._heard: dict[str, tuple[float, Heartbeat]] = {}
        self._updated_s: float | None = None
        self.updates = 0

    def _present(self, now_s: float) -> float:
        """Return the time, as far as Redis was there."""
        return now_s if self._updated_s is None else min(now_s, self._updated_s + _MISSED_S)

    def update(self, reply: Sequence[bytes], now_s: float) -> None:
        """Take the answer to a heartbeat."""
        away_s = now_s - self._present(now_s)
        if away_s:
            self._heard = {origin: (heard + away_s, said) for origin, (heard, said) in self._heard.items()}
        self._updated_s = now_s
        for _, age_ms, said in zip(reply[::3], reply[1::3], reply[2::3], strict=True):
            try:
                heartbeat = _HEARTBEAT.decode(said)
            except msgspec.DecodeError as error:
                log.warning("not_a_node", reason=str(error))
                continue
            heard = now_s - int(age_ms) / 1000
            known = self._heard.get(heartbeat.origin)
            if known is None or known[0] < heard:
                self._heard[heartbeat.origin] = (heard, heartbeat)
        for origin, (heard, heartbeat) in list(self._heard.items()):
            newer = any(h > heard and b.http == heartbeat.http for h, b in self._others(origin))
            if newer or heard < now_s - 10 * self._patience_s:
                del self._heard[origin]
        self.updates += 1

    def forget(self, origin: str) -> None:
        """A node has left."""
        self._heard.pop(origin, None)

    def _others(self, origin: str) -> Iterable[tuple[float, Heartbeat]]:
        return (one for other, one in self._heard.items() if other != origin)

    def alive(self, now_s: float) -> list[Heartbeat]:
        since = self._present(now_s) - self._patience_s
        return [heartbeat for heard, heartbeat in self._heard.values() if heard >= since]

    def heard(self, now_s: float) -> list[tuple[float, Heartbeat]]:
        """Return the nodes with the seconds since they were heard of."""
        return [(now_s - heard, heartbeat) for heard, heartbeat in self._heard.values()]

    def hosts(self, collection: str, epoch: str, now_s: float) -> dict[str, tuple[Heartbeat, Holding]]:
        """Return, by origin, the nodes alive that host a life of a collection."""
        found: dict[str, tuple[Heartbeat, Holding]] = {}
        for heartbeat in self.alive(now_s):
            holding = heartbeat.holdings.get(collection)
            if holding is not None and holding.epoch == epoch:
                found[heartbeat.origin] = (heartbeat, holding)
        return found


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """A node as it is listed. `lag` is, by collection, how many changes it is behind the furthest."""

    name: str
    ws: str
    http: str
    heard_s: float
    index_versions: Mapping[str, int]
    lag: Mapping[str, int]


def listing(heard: Iterable[tuple[float, Heartbeat]]) -> list[NodeState]:
    """Return the nodes with their lag, from pairs of seconds since they were heard of and what they said."""
    heard = list(heard)
    heads: dict[str, int] = {}
    for _, heartbeat in heard:
        for name, holding in heartbeat.holdings.items():
            heads[name] = max(heads.get(name, 0), holding.index_version)
    return [
        NodeState(
            name=heartbeat.name,
            ws=heartbeat.ws,
            http=heartbeat.http,
            heard_s=round(age_s, 3),
            index_versions={name: holding.index_version for name, holding in heartbeat.holdings.items()},
            lag={name: heads[name] - holding.index_version for name, holding in heartbeat.holdings.items()},
        )
        for age_s, heartbeat in sorted(heard, key=lambda pair: (pair[1].name, pair[1].http))
    ]

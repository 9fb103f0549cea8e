"""Recommendations told: from what a user does to the new list at the user's socket, beside asking for it.

All users of the real ratings are watched, and what they rated is learned before, so that the last rating was just now. Then
users, each once, rate what others rated. Interactions come at a steady rate, each due at a time, from which all is counted.
The rival runs when nobody is watched any more: a client that asks for the list after each acknowledgement.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import numpy as np
import uvloop
from hotindex import Client

from bench.harness import Percentiles, idle
from bench.ingest.processes import Gateway, gateway
from bench.recommend.data import Catalogue, Rating, ratings
from bench.watch.clients import Connection, Message, dealt, paced, settled
from gateway.commands.load import load
from gateway.demo import data

COLLECTION = "movies"
RATE, SECONDS, POLLING_SECONDS, IDLE_SECONDS = 200.0, 10.0, 5.0, 5.0
K = 10
_CHANCES = 4


@dataclass(frozen=True, slots=True)
class Figures:
    """Of `interactions`, each of another one of the `users`, `told` led to an update."""

    users: int
    interactions: int
    told: Percentiles
    told_p99_by_second: list[float]
    """In milliseconds; of each second in which interactions were due."""
    idle: Percentiles
    """Of a fixed piece of work, before, with nothing else to do."""
    asked: Percentiles
    """From an interaction due to the answer of the search after its acknowledgement."""
    acknowledged: Percentiles
    lost: int
    """Interactions after which no update came."""
    behind: int
    """Lists that weren't a fresh search's when all was over: what others do isn't told by itself."""
    differing: int
    """Lists that weren't even once something in them had been written to."""


@dataclass(frozen=True, slots=True)
class Act:
    """A user rates an item."""

    user: str
    item: str
    value: int
    at: float | None = None

    def command(self) -> Message:
        when = {} if self.at is None else {"timestamp": self.at}
        return {
            "type": "user_interaction",
            "collection": COLLECTION,
            "user_id": self.user,
            "action": "rate",
            "value": self.value,
            "item_id": self.item,
            **when,
        }


@dataclass(slots=True)
class Audience:
    """The users' lists as their clients know them, and when those waited for came."""

    lists: dict[str, list[str]] = field(default_factory=dict)
    waited_for: set[str] = field(default_factory=set)
    came_at: dict[str, float] = field(default_factory=dict)

    async def watch(self, url: str, users: Sequence[str], stack: AsyncExitStack) -> None:
        """Watch all users, over several connections."""
        await asyncio.gather(*(self._watch(url, some, stack) for some in dealt(users)))

    async def _watch(self, url: str, users: Sequence[str], stack: AsyncExitStack) -> None:
        connection = await stack.enter_async_context(Connection.opened(url, self._update))
        replies = await connection.ask_all([_ask("watch", user) for user in users])
        for user, reply in zip(users, replies, strict=True):
            self.lists[user] = _ids(reply)

    def _update(self, push: Message, at: float) -> None:
        user = push["user_id"]
        self.lists[user] = push["recommendations"]
        if user in self.waited_for:
            self.waited_for.discard(user)
            self.came_at[user] = at

    def differing(self, fresh: Mapping[str, list[str]]) -> list[str]:
        """Return the users whose lists aren't the fresh ones."""
        return [user for user, listed in fresh.items() if self.lists[user] != listed]


def measure(seed: int, scale: float) -> Figures:
    """Run the part."""
    catalogue = Catalogue.load()
    known = ratings(catalogue)
    known = known[: round(len(known) * min(1.0, scale))]
    quiet = idle(IDLE_SECONDS * min(1.0, scale))
    with gateway() as subject:
        return uvloop.run(_measure(subject, catalogue, known, np.random.default_rng(seed), min(1.0, scale), quiet))


async def _measure(
    subject: Gateway,
    catalogue: Catalogue,
    known: Sequence[Rating],
    rng: np.random.Generator,
    scale: float,
    quiet: Percentiles,
) -> Figures:
    users = list(dict.fromkeys(one.user for one in known))
    audience = Audience()
    async with Connection.opened(subject.ws) as producer:
        await _load(subject, catalogue, known, scale)
        await producer.ask_all([act.command() for act in _shifted(catalogue, known)])
        await subject.idle()
        acts = drawn(catalogue, known, rng)
        count = min(round(RATE * SECONDS * scale), len(acts) // 2)
        async with AsyncExitStack() as stack:
            await audience.watch(subject.ws, users, stack)
            told, acked = await _told(producer, audience, acts[:count])
            await subject.idle()
            behind = audience.differing(await _fresh(producer, users))
            differing = await _differing(subject, producer, audience)
        await subject.idle()  # it sees the watches off
        asked = await _asked(producer, acts[count : count + round(RATE * POLLING_SECONDS * scale)])
    return Figures(
        users=len(users),
        interactions=count,
        told=Percentiles.of(told),
        told_p99_by_second=[Percentiles.of(told[n : n + round(RATE)]).p99 for n in range(0, len(told), round(RATE))],
        idle=quiet,
        asked=Percentiles.of(asked),
        acknowledged=Percentiles.of(acked),
        lost=count - len(told),
        behind=len(behind),
        differing=len(differing),
    )


async def _load(subject: Gateway, catalogue: Catalogue, known: Sequence[Rating], scale: float) -> None:
    """Upsert what is rated, and as many of the other movies as the scale says."""
    rated = {catalogue.ids[one.item] for one in known}
    movies = data.movies()
    others = [movie for movie in movies if movie.id not in rated][: round(len(movies) * scale)]
    async with Client(subject.ws) as client:
        await load(
            client, COLLECTION, [*others, *(movie for movie in movies if movie.id in rated)], 256, lambda _: None
        )


def _shifted(catalogue: Catalogue, known: Sequence[Rating]) -> list[Act]:
    """Return the ratings as if the last had been given now."""
    apart_s = time.time() - known[-1].at / 1e6
    return [Act(one.user, catalogue.ids[one.item], one.value, one.at / 1e6 + apart_s) for one in known]


def drawn(catalogue: Catalogue, known: Sequence[Rating], rng: np.random.Generator) -> list[Act]:
    """Return an act of each user, in random order: what another user rated, as that one did, and this one didn't."""
    rated: dict[str, set[int]] = {}
    for one in known:
        rated.setdefault(one.user, set()).add(one.item)
    acts = []
    for user in rng.permutation(list(rated)).tolist():
        other = known[int(rng.integers(len(known)))]
        while other.item in rated[user]:
            other = known[int(rng.integers(len(known)))]
        acts.append(Act(user, catalogue.ids[other.item], other.value))
    return acts


async def _told(producer: Connection, audience: Audience, acts: Sequence[Act]) -> tuple[list[float], list[float]]:
    """Return how long after each act its user was told, and how long until it was acknowledged."""
    due_at: dict[str, float] = {}
    acked_at: dict[str, float] = {}

    async def act_on(act: Act) -> None:
        await producer.ask(**act.command())
        acked_at[act.user] = time.perf_counter()

    replies = []
    async for number, due in paced(len(acts), RATE):
        act = acts[number]
        due_at[act.user] = due
        audience.waited_for.add(act.user)
        replies.append(asyncio.create_task(act_on(act)))
    await asyncio.gather(*replies)
    await settled(lambda: len(audience.came_at), len(acts))
    came, acked = (
        [at[user] - due for user, due in due_at.items() if user in at] for at in (audience.came_at, acked_at)
    )
    return came, acked


async def _differing(subject: Gateway, producer: Connection, audience: Audience) -> Sequence[str]:
    """Return the users whose lists aren't those of a fresh search, though something in them was written to.

    A list of just now may be another one by itself, as scores change with time, so those that differ have more chances.
    """
    left: Sequence[str] = list(audience.lists)
    for _ in range(_CHANCES):
        await _touch(producer, audience, left)
        await subject.idle()
        left = audience.differing(await _fresh(producer, left))
    return left


async def _touch(producer: Connection, audience: Audience, users: Sequence[str]) -> None:
    """Write to an item of each user's list, the one that fewest lists show, by which the list is made anew."""
    shown = Counter(item for listed in audience.lists.values() for item in listed)
    rarest = {min(audience.lists[user], key=lambda item: (shown[item], item)) for user in users}
    await producer.ask_all(
        [
            {"action": "patch", "collection": COLLECTION, "id": item, "changes": {"touched": time.time()}}
            for item in sorted(rarest)
        ]
    )


async def _fresh(producer: Connection, users: Sequence[str]) -> dict[str, list[str]]:
    replies = await producer.ask_all([_ask("search", user) for user in users], at_once=8)
    return {user: _ids(reply) for user, reply in zip(users, replies, strict=True)}


async def _asked(producer: Connection, acts: Sequence[Act]) -> list[float]:
    async def ask(act: Act, due: float) -> float:
        await producer.ask(**act.command())
        await producer.ask(**_ask("search", act.user))
        return time.perf_counter() - due

    asking = [asyncio.create_task(ask(acts[number], due)) async for number, due in paced(len(acts), RATE)]
    return list(await asyncio.gather(*asking))


def _ask(action: str, user: str) -> Message:
    return {"action": action, "collection": COLLECTION, "user_id": user, "k": K}


def _ids(reply: Message) -> list[str]:
    return [one["id"] for one in reply["results"]]

"""What is known of a user: a direction among the items' vectors, and what it rests on. Pure: values in, values out.

The direction is a sum of the vectors of items the user had to do with, each weighted by what was done and decayed by its
age at the time of the newest event:

    u(t) = Σ w_i · exp(-(t - t_i) / tau) · v_i / |v_i|

It is kept unnormalised beside that time t. A newer event decays the sum and is added; a late one (older than t) is
decayed itself and added. So the order in which events arrive doesn't matter, save for rounding and for what falls out at
a bound. Events are not recognised: the caller applies each once, and the same events in the same order give the same
profile, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import nlargest

import msgspec
import numpy as np

from gateway.engine.types import Metric, Vector
from gateway.engine.vectors import comparable
from gateway.errors import InvalidVector

DAY_S = 86_400.0
FORMAT = 2
_US = 1e6
_LEAST_DIRECTION = 1e-3
"""Below this share of its evidence a sum is what rounding left of vectors that cancel out."""


class Interaction(msgspec.Struct, frozen=True, eq=False):
    """That a user had to do with an item.

    `at` is in microseconds since the epoch, and not in the future: one from there would age all that comes after it.
    `vector` is the item's, of any length; None where it isn't known, or shouldn't move the profile. `year` is the one the
    item is from.
    """

    item_id: str
    weight: float
    at: int
    vector: Vector | None = None
    category: str | None = None
    seen: bool = True
    year: float | None = None


class Recent(msgspec.Struct, frozen=True, array_like=True):
    """One of the latest interactions with an item that has a vector (unit length, float32)."""

    item_id: str
    weight: float
    at: int
    vector: bytes
    year: float | None = None


class Profile(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a user as of `at`, the time of the newest event."""

    format: int = FORMAT
    at: int = 0
    """Microseconds since the epoch."""
    vector: bytes = b""
    """The unnormalised sum, float32[d]; empty before the first vector."""
    evidence: float = 0.0
    """The decayed sum of |weight|: how much is known."""
    seen: dict[str, int] = {}
    """Item ids, with the time they were last seen."""
    recent: tuple[Recent, ...] = ()
    """Newest first, an item once."""
    categories: dict[str, float] = {}
    """The decayed sum of weights by category."""


@dataclass(frozen=True, slots=True)
class Memory:
    """How long a profile remembers, and how much.

    At a bound the oldest of `seen` and `recent` go, and the categories with the smallest weight. With 384 dimensions a
    profile takes at most about 60 KB.
    """

    tau_s: float = 30 * DAY_S
    seen_s: float = 365 * DAY_S
    seen_max: int = 1_000
    recent_max: int = 5
    categories_max: int = 64


EMPTY = Profile()
MEMORY = Memory()


def learn(profile: Profile, event: Interaction, memory: Memory = MEMORY) -> Profile:
    """Return the profile with one more event. Raises InvalidVector where the dimension differs from the profile's."""
    newest = max(profile.at, event.at)
    fade = _decay(newest - profile.at, memory.tau_s)
    weight = event.weight * _decay(newest - event.at, memory.tau_s)
    unit = _unit(event.vector)
    return Profile(
        at=newest,
        vector=_sum(profile.vector, fade, unit, weight),
        evidence=profile.evidence * fade + abs(weight),
        seen=_seen(profile.seen, event, newest, memory),
        recent=profile.recent if unit is None else _recent(profile.recent, event, unit, memory.recent_max),
        categories=_categories(profile.categories, fade, event.category, weight, memory.categories_max),
    )


def replay(events: Iterable[Interaction], memory: Memory = MEMORY) -> Profile:
    """Return the profile that these events make, from nothing."""
    profile = EMPTY
    for event in events:
        profile = learn(profile, event, memory)
    return profile


def placed(profile: Profile, vector: Vector, at: int, evidence: float = 1.0) -> Profile:
    """Return the profile with its direction, and what that rests on, replaced by a vector from elsewhere.

    What was seen stays. Events older than `at` count as late ones.
    """
    unit = _unit(vector)
    if unit is None:
        raise InvalidVector("vector of a user is zero", field="vector")
    return Profile(at=at, vector=(unit * np.float32(evidence)).tobytes(), evidence=evidence, seen=profile.seen)


def query(profile: Profile) -> Vector | None:
    """Return the direction as float32[d] of unit length, None where there is none: no vector yet, or all cancel out."""
    total = np.frombuffer(profile.vector, np.float32)
    length = float(np.linalg.norm(total)) if len(total) else 0.0
    if length <= _LEAST_DIRECTION * profile.evidence or length == 0.0:
        return None
    return total / np.float32(length)


def seen(profile: Profile, now: int, memory: Memory = MEMORY) -> frozenset[str]:
    """Return the ids of the items seen within `seen_s` before `now` (microseconds since the epoch)."""
    since = now - memory.seen_s * _US
    return frozenset(item_id for item_id, at in profile.seen.items() if at >= since)


def evidence(profile: Profile, now: int, memory: Memory = MEMORY) -> float:
    """Return how much is known as of `now`: all of it ages, whether or not events come."""
    return profile.evidence * _decay(max(0, now - profile.at), memory.tau_s)


def liked(profile: Profile) -> list[Vector]:
    """Return the unit vectors of the latest items that were spoken for, newest first."""
    return [np.frombuffer(one.vector, np.float32) for one in profile.recent if one.weight > 0]


def affinities(profile: Profile) -> dict[str, float]:
    """Return by category the share of all weight that spoke for it, largest first; none below 0."""
    total = sum(map(abs, profile.categories.values()))
    ordered = sorted(profile.categories.items(), key=lambda pair: (-pair[1], pair[0]))
    return {category: weight / total for category, weight in ordered if weight > 0}


def _decay(age_us: int, tau_s: float) -> float:
    return math.exp(-age_us / (tau_s * _US))


def _unit(vector: Vector | None) -> Vector | None:
    return None if vector is None or not vector.any() else comparable(vector, Metric.COSINE)


def _sum(total: bytes, fade: float, unit: Vector | None, weight: float) -> bytes:
    old = np.frombuffer(total, np.float32)
    if unit is None:
        return (old * np.float32(fade)).tobytes()
    if not len(old):
        return (unit * np.float32(weight)).tobytes()
    if len(old) != len(unit):
        raise InvalidVector(f"vector has {len(unit)} dimensions, the user's profile {len(old)}", field="vector")
    return (old * np.float32(fade) + unit * np.float32(weight)).tobytes()


def _seen(old: dict[str, int], event: Interaction, newest: int, memory: Memory) -> dict[str, int]:
    seen = {**old, event.item_id: max(event.at, old.get(event.item_id, event.at))} if event.seen else old
    since = newest - memory.seen_s * _US
    if len(seen) > memory.seen_max or any(at < since for at in seen.values()):
        kept = (pair for pair in seen.items() if pair[1] >= since)
        return dict(nlargest(memory.seen_max, kept, key=lambda pair: (pair[1], pair[0])))
    return seen


def _recent(old: tuple[Recent, ...], event: Interaction, unit: Vector, limit: int) -> tuple[Recent, ...]:
    this = Recent(event.item_id, event.weight, event.at, unit.tobytes(), event.year)
    same = [one for one in old if one.item_id == event.item_id]
    others = [one for one in old if one.item_id != event.item_id]
    latest = max([*same, this], key=lambda one: (one.at, one.weight))
    return tuple(nlargest(limit, [*others, latest], key=lambda one: (one.at, one.item_id)))


def _categories(
    old: Mapping[str, float], fade: float, category: str | None, weight: float, limit: int
) -> dict[str, float]:
    counted = {name: count * fade for name, count in old.items()}
    if category is not None:
        counted[category] = counted.get(category, 0.0) + weight
    if len(counted) > limit:
        counted = dict(nlargest(limit, counted.items(), key=lambda pair: (abs(pair[1]), pair[0])))
    return counted

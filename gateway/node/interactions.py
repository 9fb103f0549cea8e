"""From what producers say of users to what is learned of them."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from gateway.engine.types import Done, Put, Write
from gateway.errors import Conflict, HotindexError, InvalidArgument, NotFound
from gateway.node.items import Item
from gateway.node.users import Users
from gateway.protocol import checks, messages
from gateway.protocol.messages import JsonObject
from gateway.users.actions import Vocabulary
from gateway.users.profile import Interaction


@dataclass(frozen=True, slots=True)
class Event:
    """A command, checked. `features` is what an item that isn't known is made from."""

    user_id: str
    item_id: str
    weight: float
    seen: bool
    at: int
    event_id: str | None
    features: JsonObject | None


class Place(Protocol):
    """Where the items are."""

    @property
    def name(self) -> str: ...

    async def submit(self, write: Write, wait: bool = True) -> asyncio.Future[Done | HotindexError]: ...


def event(command: messages.Learn, vocabulary: Vocabulary, now: int) -> Event:
    """Return what a command says. Raises InvalidArgument, TooLarge."""
    checks.document_id(command.user_id, "user_id")
    checks.document_id(command.item_id, "item_id")
    if command.event_id is not None:
        checks.document_id(command.event_id, "event_id")
    features: JsonObject | None = None
    if isinstance(command, messages.UserEvent):
        action = vocabulary.weigh(command.event_type, command.value, named_by="event_type")
        features = command.item_features
        checks.metadata(features or {}, "item_features")
        checks.document_size(features or {}, None, command.item_id)
    else:
        assert isinstance(command, messages.UserInteraction), "there are two kinds"
        action = vocabulary.weigh(command.action, command.value)
    at = now if command.timestamp is None else _microseconds(command.timestamp, now)
    return Event(command.user_id, command.item_id, action.weight, action.seen, at, command.event_id, features)


def new_item(event: Event) -> Write | None:
    """Return what adds the item an event brings, unless there is one."""
    if not event.features:
        return None
    put = Put(event.item_id, metadata=event.features, if_version=0, from_fields=True)
    return Write((put,), size_bytes=len(msgspec.json.encode(event.features)))


async def learn(place: Place, users: Users, event: Event) -> Done:
    """Learn an event; return once it is on disk. Raises NotFound where there is no such item."""
    item = await users.item(event.item_id) or await _add(place, users, event)
    category = msgspec.json.decode(item.document.metadata).get("category")
    interaction = Interaction(
        event.item_id,
        event.weight,
        event.at,
        item.vector,
        category if isinstance(category, str) else None,
        event.seen,
        None if math.isnan(item.year) else item.year,
    )
    return await users.learn(event.user_id, interaction, event.event_id)


async def _add(place: Place, users: Users, event: Event) -> Item:
    if (write := new_item(event)) is not None:
        outcome = await (await place.submit(write))
        if isinstance(outcome, HotindexError) and not isinstance(outcome, Conflict):
            raise outcome
        if (item := await users.item(event.item_id)) is not None:
            return item
    raise NotFound(f"no document {event.item_id!r} in collection {place.name!r}", field="item_id")


def _microseconds(timestamp: str | float, now: int) -> int:
    """Return microseconds since the epoch, at most `now`: one from the future would age all that comes after it.

    Raises InvalidArgument.
    """
    try:
        if isinstance(timestamp, str):
            moment = datetime.fromisoformat(timestamp)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        else:
            seconds = float(timestamp)
        if not 0 <= seconds < math.inf:
            raise ValueError("it is before 1970, or no time at all")
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(
            f"timestamp {checks.show(timestamp)} is neither ISO 8601 nor seconds since 1970: {error}", field="timestamp"
        ) from None
    return int(min(seconds * 1e6, now))  # the largest seconds are infinitely many microseconds

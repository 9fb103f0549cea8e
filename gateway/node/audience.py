"""The users of a collection in service: what producers say of them, what is known of them, and who watches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway.engine import vectors
from gateway.engine.filter import Filter
from gateway.engine.types import Answer, Done, Metric, Spec
from gateway.errors import InvalidArgument
from gateway.live.standing import MAX_K
from gateway.node import interactions, watches
from gateway.node.feeds import Feeds
from gateway.node.forms import Form
from gateway.node.recommending import Ask
from gateway.node.users import Home, Users
from gateway.node.watches import Opened
from gateway.node.watching import Watching
from gateway.protocol import checks, messages
from gateway.protocol.timestamps import iso
from gateway.push.room import Sink
from gateway.users import profile as profiles
from gateway.users.actions import Vocabulary


class Place(Home, interactions.Place, Protocol):
    @property
    def spec(self) -> Spec: ...

    @property
    def watching(self) -> Watching: ...


class Audience:
    """Call on the event loop. `now` gives microseconds since the epoch."""

    def __init__(self, place: Place, users: Users, vocabulary: Vocabulary, now: Callable[[], int]) -> None:
        self.users = users
        self.feeds = Feeds(place.name, users, place.watching, now)
        self._place = place
        self._vocabulary = vocabulary
        self._now = now
        place.listeners.append(self.feeds.items_changed)

    def attach(self, companion: Home) -> None:
        """Follow the collection of the users; called whenever there is another one."""
        self.users.attach(companion)
        self.feeds.look_again()

    async def stop(self) -> None:
        """Close the connections of all who watch, and follow the collection of the users no more."""
        await self.feeds.stop()
        await self.users.stop()

    async def learn(self, command: messages.Learn) -> Done:
        """Learn what a user did; return once it is on disk. Raises what is wrong with the command."""
        event = interactions.event(command, self._vocabulary, self._now())
        return await interactions.learn(self._place, self.users, event)

    async def put(self, command: messages.PutUser) -> Done:
        """Replace a user's direction. Raises what is wrong with the command."""
        checks.document_id(command.user_id, "user_id")
        if command.event_id is not None:
            checks.document_id(command.event_id, "event_id")
        spec = self._place.collection.spec
        vector = vectors.parse(command.vector)
        vectors.check(vector, spec.dimension, Metric.COSINE)
        return await self.users.put(command.user_id, vector, command.event_id)

    async def forget(self, user_id: str) -> Done:
        """Delete all that is known of a user."""
        checks.document_id(user_id, "user_id")
        return await self.users.forget(user_id)

    async def describe(self, user_id: str) -> messages.UserMessage:
        """Return what is known of a user. Raises NotFound."""
        checks.document_id(user_id, "user_id")
        document, profile = await self.users.get(user_id)
        now, memory = self._now(), self.users.memory
        return messages.UserMessage(
            collection=self._place.name,
            user_id=user_id,
            version=document.version,
            updated_at=iso(document.updated_at),
            evidence=profiles.evidence(profile, now, memory),
            seen=len(profiles.seen(profile, now, memory)),
            recent=tuple(one.item_id for one in profile.recent),
            categories=profiles.affinities(profile),
        )

    async def recommend(self, command: messages.Search) -> Answer:
        """Return what is recommended to a user now. Raises what is wrong with the command."""
        found = await self.users.recommend(asked(command))
        return Answer(found.index_version, (found.hits,))

    async def watch(self, command: messages.Watch, watch_id: str, form: Form, sink: Sink) -> Opened:
        """Return a watch of a user's recommendations. Raises what is wrong with the command."""
        return await self.feeds.watch(asked(command), watch_id, watches.least_pause_s(command), form, sink)


def asked(command: messages.Search | messages.Watch) -> Ask:
    """Return what a command about a user asks for. Raises what is wrong with it, whatever the collection is."""
    user_id = command.user_id
    assert user_id is not None, "it is about a user"
    checks.document_id(user_id, "user_id")
    checks.between(command.k, 1, MAX_K, "k")
    others = ["vector", "vectors", "text", "id", "exact", "ef"]
    if isinstance(command, messages.Watch):
        others.append("include")  # what is told from then on are ids and scores
    given = [name for name in others if getattr(command, name, None)]
    if command.min_score is not None:
        given.append("min_score")
    if given:
        raise InvalidArgument(f"{', '.join(given)} can't be asked for together with user_id", field=given[0])
    if command.diversity is not None and not 0 <= command.diversity <= 1:
        raise InvalidArgument(f"diversity is {command.diversity}; it must be from 0 to 1", field="diversity")
    include = command.include if isinstance(command, messages.Search) else ()
    where = Filter(command.filter) if command.filter else None
    return Ask(user_id, command.k, where, command.diversity, "vector" in include)


def learnable(spec: Spec) -> bool:
    """Tell whether users can be learned by the vectors of a collection: squared distances have no direction."""
    return spec.metric is not Metric.L2

"""One client's watch: from its command to a standing query, and what is done for it in threads."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np

from gateway.engine.collection import Collection
from gateway.engine.search import Query
from gateway.engine.types import Applied, Document
from gateway.errors import InvalidArgument, NotFound
from gateway.live.standing import MAX_K, Standing, wanted
from gateway.live.types import Difference, Nearest, Ranked, Watch
from gateway.node import queries
from gateway.node.forms import ForClient, Form
from gateway.protocol import checks, messages
from gateway.protocol.codec import MSGPACK
from gateway.push.room import Sink

MAX_RATE = 1000.0
_LEAST_EF = 256
_EF_PER_WANTED = 2


@dataclass(eq=False, slots=True)
class Live:
    """A watch of a client. `first` becomes its first answer.

    `ticket` counts the searches it has needed. What an older one found is taken in too, down to `least_ticket`: where its
    query follows a document that changes faster than a search takes, there is nothing else. It is `settled` while one
    has come in since it was last needed. It is told nothing before it has `begun`.
    """

    collection: str
    watch_id: str
    form: Form
    sink: Sink
    watch: Watch
    exact: bool
    include: tuple[messages.Include, ...]
    follows: str | None
    """The id of the document whose vector is the query."""
    least_pause_s: float
    first: asyncio.Future[messages.Watching]
    changed: Callable[[], None] | None = None
    """What is called instead of telling a client, where the watch is this process's own: a trace."""
    known: Nearest | None = None
    """What a trace was moved to, before it is in."""
    asked: Watch | None = None
    """What the standing query asks for."""
    number: int | None = None
    """Its number among the standing queries."""
    vector_version: int = 0
    """Of the vector of the document it follows."""
    latest: tuple[int, bytes] | None = None
    """The newest vector that a commit has brought of that document, with its version: it may be deleted before a search."""
    ticket: int = 0
    least_ticket: int = 0
    searching: bool = False
    settled: bool = False
    begun: bool = False
    closed: bool = False
    due: float = -math.inf
    timer: asyncio.TimerHandle | None = None

    @property
    def filtered(self) -> bool:
        return self.watch.where is not None

    @property
    def shows_vectors(self) -> bool:
        return "vector" in self.include

    def write(self, message: messages.Message) -> None:
        self.sink.write(self.form.written(message))


class Closing(Protocol):
    @property
    def closed(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A watch that has its first answer. `begin` lets it be told of changes, `leave` ends it."""

    live: Closing
    reply: messages.Watching
    begin: Callable[[], None]
    leave: Callable[[], None]
    user_id: str | None = None
    """Of the user it watches."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found for a watch, and for which vector of the document it follows."""

    live: Live
    ticket: int
    watch: Watch
    vector_version: int
    nearest: Nearest


@dataclass(slots=True)
class Turn:
    """What a turn came to: numbers of watches that changed and that are short, and what became of searches."""

    changed: set[int] = field(default_factory=set)
    short: set[int] = field(default_factory=set)
    taken: list[Found] = field(default_factory=list)
    early: list[Found] = field(default_factory=list)
    """Of index_versions that are still to be applied."""
    late: list[Found] = field(default_factory=list)
    """Of index_versions that too much has come after."""


async def check(
    place: queries.Place, command: messages.Watch, watch_id: str, form: Form, sink: Sink, last: bytes | None = None
) -> Live:
    """Return the watch a command asks for, which has no answer yet. Raises what is wrong with the command.

    `last` was the vector of the document it follows, should that be deleted.
    """
    search, pause_s = searched(command), least_pause_s(command)
    try:
        query = await queries.query(place, search)
    except NotFound:
        if last is None:
            raise
        query = await queries.query(place, msgspec.structs.replace(search, id=None, vector=last))
    watch = Watch(
        query.vectors[0],
        command.k,
        query.where,
        -math.inf if command.min_score is None else command.min_score,
        frozenset() if command.id is None else frozenset((command.id,)),
    )
    first = asyncio.get_running_loop().create_future()
    return Live(place.name, watch_id, form, sink, watch, command.exact, command.include, command.id, pause_s, first)


def searched(command: messages.Watch) -> messages.Search:
    """Return what a watch searches for. Raises what is wrong with the command whatever the collection is."""
    given = [name for name in ("vector", "text", "id") if getattr(command, name) is not None]
    if len(given) != 1:
        raise InvalidArgument(
            f"watch needs one of vector, text, id and user_id; it has {', '.join(given) or 'none'}", field="vector"
        )
    queries.without_user(command)
    checks.between(command.k, 1, MAX_K, "k")
    return messages.Search(
        vector=command.vector,
        text=command.text,
        id=command.id,
        k=command.k,
        filter=command.filter,
        min_score=command.min_score,
    )


def least_pause_s(command: messages.Watch) -> float:
    """Return the time between two pushes of a watch. Raises InvalidArgument."""
    if command.max_rate is None:
        return 0.0
    if not 0 < command.max_rate <= MAX_RATE:
        raise InvalidArgument(
            f"max_rate is {command.max_rate}; it must be over 0, up to {MAX_RATE:g} pushes a second", field="max_rate"
        )
    return 1 / command.max_rate


class _Nowhere:
    """The sink of a trace, to which nothing is written."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def offer(self, data: bytes) -> bool:  # noqa: ARG002
        return True

    def write(self, data: bytes) -> None:  # noqa: ARG002
        raise AssertionError("a trace is told of by a call")

    async def drained(self) -> bool:
        return True

    def abandon(self, *, slow: bool = False) -> None:  # noqa: ARG002
        """It traces no more: whoever needs it makes another."""
        self._changed()

    def end(self) -> None:
        pass


_UNTOLD = ForClient(MSGPACK)


def trace(collection: str, watch: Watch, changed: Callable[[], None]) -> Live:
    """Return a watch of this process's own."""
    first = asyncio.get_running_loop().create_future()
    return Live(collection, "", _UNTOLD, _Nowhere(changed), watch, False, (), None, 0.0, first, changed)


def apply(standing: Standing, commits: Sequence[Applied], found: Sequence[Found]) -> Turn:
    """Apply commits, and take in what searches found, each as of its index_version. Blocks.

    Taken in after all commits, each would have to be given all those that the search didn't see once more.
    """
    turn, left = Turn(), deque(_in_order(found))
    for applied in commits:
        while left and left[0][0] < applied.first_index_version:
            _take(standing, turn, left.popleft()[1])
        affected = standing.apply(applied)
        turn.changed.update(affected.changed)
        turn.short.update(affected.short)
    for _, one in left:
        _take(standing, turn, one)
    return turn


def _in_order(found: Sequence[Found]) -> list[tuple[int, Found]]:
    """Return when to take in what was found, by index_version; of one watch, what is first here stays first."""
    moments: dict[Live, int] = {}
    ordered = []
    for one in found:
        moments[one.live] = max(moments.get(one.live, 0), one.nearest.index_version)
        ordered.append((moments[one.live], one))
    return sorted(ordered, key=lambda pair: pair[0])


def _take(standing: Standing, turn: Turn, one: Found) -> None:
    if one.nearest.index_version > standing.index_version:
        turn.early.append(one)
    elif not standing.reaches(one.nearest.index_version):
        turn.late.append(one)
    else:
        _fill(standing, one)
        turn.taken.append(one)
        number = one.live.number
        assert number is not None, "it was added"
        turn.short.discard(number)
        if standing.waits(number):
            turn.short.add(number)


def _fill(standing: Standing, found: Found) -> None:
    live = found.live
    if live.number is None:
        live.number = standing.add(found.watch, found.nearest)
    elif live.asked is not found.watch:
        standing.move(live.number, found.watch, found.nearest)
    else:
        standing.refill(live.number, found.nearest)
    live.asked = found.watch


def search(collection: Collection, live: Live, ticket: int) -> Found:
    """Search for a watch, by the vector that the document it follows has now, or had last. Blocks."""
    watch, vector_version = live.watch, live.vector_version
    if live.follows is not None:
        document, blob = collection.get(live.follows, include_vector=True) or (None, None)
        if document is not None and document.vector_version is not None and blob is not None:
            watch, vector_version = replace(watch, query=np.frombuffer(blob, np.float32)), document.vector_version
        elif document is None and live.latest is not None and live.latest[0] > vector_version:
            vector_version, blob = live.latest
            watch = replace(watch, query=np.frombuffer(blob, np.float32))
    k = wanted(watch.k)
    query = Query(
        watch.query[np.newaxis],
        k,
        watch.where,
        live.exact,
        excluded=frozenset(watch.excluded),
        include_vector=True,
        ef=max(_LEAST_EF, _EF_PER_WANTED * k, collection.spec.ef_search),
    )
    answer = collection.search(query)
    hits = answer.results[0]
    return Found(live, ticket, watch, vector_version, Nearest(answer.index_version, hits, len(hits) < k))


Vectors: TypeAlias = Mapping[int, bytes]
"""By vector_version: those of all documents told of, where a watch includes vectors."""


def watching(live: Live, index_version: int, ranked: Sequence[Ranked], vectors: Vectors) -> messages.Watching:
    """Return a client's first answer."""
    return messages.Watching(
        watch_id=live.watch_id,
        collection=live.collection,
        index_version=index_version,
        exact=live.exact,
        query=live.form.query(live.watch.query),
        results=tuple(
            messages.WatchResult(id=one.document.id, score=one.score, **_shown(live, one.document, vectors))
            for one in ranked
        ),
    )


def update(live: Live, index_version: int, difference: Difference, vectors: Vectors) -> messages.WatchUpdate:
    """Return what tells a client the difference."""
    return messages.WatchUpdate(
        watch_id=live.watch_id,
        index_version=index_version,
        added=_items(live, difference.added, vectors),
        changed=_items(live, difference.changed, vectors),
        removed=tuple(difference.removed),
        query=None if live.follows is None else live.form.query(live.watch.query),
    )


def _items(live: Live, ranked: Sequence[Ranked], vectors: Vectors) -> tuple[messages.WatchItem, ...]:
    return tuple(
        messages.WatchItem(id=one.document.id, score=one.score, rank=one.rank, **_shown(live, one.document, vectors))
        for one in ranked
    )


def _shown(live: Live, document: Document, vectors: Vectors) -> dict[str, Any]:
    """Return what a client is shown of a document."""
    form = live.form
    shown: dict[str, Any] = {"metadata": form.metadata(document.metadata), "version": form.version(document.version)}
    if "content" in live.include:
        shown["content"] = document.content
    if live.shows_vectors:
        assert document.vector_version is not None, "a deleted document isn't shown"
        shown["vector"] = form.vector(vectors[document.vector_version])
    return shown

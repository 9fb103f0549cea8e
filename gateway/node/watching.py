"""The live queries of a hosted collection: what clients watch, and when they are told.

One task owns the `Standing`. In turns it applies the commits that wait, in a thread, takes in what searches have found
meanwhile, and tells each watch whose answer is another one now at most one difference: what changes while a turn takes,
while a socket is full or while a watch's `max_rate` forbids it comes with the next, and what has changed back doesn't
come at all. Searches, the first of a watch and those that refill it, run beside the turns, a few at a time.

What waits is bounded: where commits come in faster than they are applied, they are passed over, and every watch is
searched for anew. Such a watch is told nothing until its search is in, and then the difference from what it was told.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from gateway.engine.types import Applied, Change
from gateway.errors import HotindexError, NotFound
from gateway.faults import internal
from gateway.live.standing import Standing
from gateway.live.types import Difference, Nearest, Watch
from gateway.node import queries, watches
from gateway.node.forms import Form
from gateway.node.parking import Parking
from gateway.node.recent import RecentVectors
from gateway.node.watches import Found, Live, Opened, Turn
from gateway.protocol import messages
from gateway.push.room import Room, Sink

WAITING_BYTES = 32 << 20
"""Of commits that wait to be applied to the watches; one may be larger."""

_LOG_BYTES = 16 << 20
_SEARCHES_AT_ONCE = 4
_TOLD_AT_ONCE = 64
_PAIRS_AT_ONCE = 8192
"""Of watches and changes: so many take about half a millisecond, most of it with the interpreter's lock."""

_FOUND_AT_ONCE = 4
_RETRY_S = 1.0
_AGAIN_S = 0.005


class Place(queries.Place, Protocol):
    @property
    def room(self) -> Room: ...


class Watching:
    """Call on the event loop. It costs nothing while nobody watches."""

    def __init__(self, place: Place, waiting_bytes: int = WAITING_BYTES) -> None:
        self._place = place
        self._waiting_bytes_limit = waiting_bytes
        self._lives: set[Live] = set()
        self._filtered = 0
        self._showing = 0
        """How many watches include vectors."""
        self._recent = RecentVectors()
        self._followed: dict[str, set[Live]] = {}
        self._by_number: dict[int, Live] = {}
        self._standing: Standing | None = None
        self._task: asyncio.Task[None] | None = None
        self._searches: set[asyncio.Task[None]] = set()
        self._searching = 0
        self._wake = asyncio.Event()
        self._waiting: deque[Applied] = deque()
        self._waiting_bytes = 0
        self._wanting: dict[Live, None] = {}
        self._found: list[Found] = []
        self._dirty: dict[Live, None] = {}
        self._parking: Parking[Live] = Parking(self._mark)
        self._gone: list[Live] = []
        self._ended = False
        self.passed_over = 0
        """How often commits came in faster than they were applied."""
        self.searches = 0
        self.updates = 0

    def __len__(self) -> int:
        return len(self._lives)

    @property
    def behind(self) -> int:
        """The number of watches that wait for their sockets."""
        return len(self._parking)

    @property
    def wants_vectors(self) -> bool:
        """Whether commits are to bring the vectors of all documents they change: one may come into a filter."""
        return self._filtered > 0

    async def watch(
        self, command: messages.Watch, watch_id: str, form: Form, sink: Sink, last: bytes | None = None
    ) -> Opened:
        """Return a watch that is told of changes once its answer was written and `begin` called.

        `last` is what it was watched for elsewhere. Raises what is wrong with the command. Where this is cancelled, there
        is no watch.
        """
        live = await watches.check(self._place, command, watch_id, form, sink, last)
        self._enter(live)
        try:
            reply = await live.first
        except BaseException:
            self.leave(live)
            raise
        return Opened(live, reply, partial(self._begin, live), partial(self.leave, live))

    def trace(self, watch: Watch, nearest: Nearest, changed: Callable[[], None]) -> Live:
        """Return a watch of this process's own, which calls `changed` when its answer does; `nearest` is its first."""
        live = watches.trace(self._place.name, watch, changed)
        self._enter(live)
        self._give(live, watch, nearest)
        return live

    def move(self, live: Live, watch: Watch, nearest: Nearest) -> None:
        """Let a trace ask for something else, which a search has found."""
        live.ticket += 1
        live.least_ticket = live.ticket  # what is being searched for is something else
        live.watch = watch
        self._give(live, watch, nearest)

    def _give(self, live: Live, watch: Watch, nearest: Nearest) -> None:
        live.settled, live.known = False, nearest
        self._wanting.pop(live, None)
        self._found.append(Found(live, live.ticket, watch, 0, nearest))
        self._wake.set()

    def _begin(self, live: Live) -> None:
        live.begun = True
        if live.closed:
            live.write(messages.Unwatched(watch_id=live.watch_id, collection=live.collection))
        self._mark(live)

    def leave(self, live: Live) -> None:
        """Remove a watch; nothing is written to it after."""
        if live.closed:
            return
        live.closed = True
        if live.timer is not None:
            live.timer.cancel()
        self._lives.discard(live)
        self._filtered -= live.filtered
        self._showing -= live.shows_vectors
        if live.follows is not None:
            self._followed[live.follows].discard(live)
            if not self._followed[live.follows]:
                del self._followed[live.follows]
        self._wanting.pop(live, None)
        self._dirty.pop(live, None)
        self._gone.append(live)
        self._wake.set()

    def _enter(self, live: Live) -> None:
        if self._ended:
            raise NotFound(f"no collection {self._place.name!r}", field="collection")
        self._lives.add(live)
        self._filtered += live.filtered
        self._showing += live.shows_vectors
        if live.follows is not None:
            self._followed.setdefault(live.follows, set()).add(live)
        if self._standing is None:
            spec = self._place.collection.spec
            self._standing = Standing(spec.dimension, spec.metric, self._place.room.head, _LOG_BYTES)
            self._task = asyncio.create_task(self._run(self._standing), name=f"watches {self._place.name}")
        self._want(live)

    def publish(self, applied: Applied) -> None:
        """Pass a commit on to the watches. Commits come in order, each once."""
        if self._standing is None:
            return
        first = self._waiting[0].first_index_version if self._waiting else applied.first_index_version
        self._waiting.append(applied)
        self._waiting_bytes += _size_bytes(applied)
        if self._waiting_bytes > self._waiting_bytes_limit and len(self._waiting) > 1:
            # A commit of nothing takes their place. What is held is of no use, and each watch is searched for anew.
            self.passed_over += 1
            self._waiting.clear()
            self._waiting.append(Applied(first, applied.index_version, ()))
            self._waiting_bytes = 0
            for live in self._lives:
                self._want(live)
                live.least_ticket = live.ticket
        self._wake.set()

    def close(self) -> None:
        """Tell every watch that there is no more to come: the collection is dropped."""
        for live in list(self._lives):
            self._end(live)
            if live.begun:
                live.write(messages.Unwatched(watch_id=live.watch_id, collection=live.collection))
        self._ended = True

    def abandon(self) -> None:
        """Close the connections of all watches: they come back, and watch what takes this collection's place."""
        for live in list(self._lives):
            self._end(live)
            live.sink.abandon()
        self._ended = True

    def _end(self, live: Live) -> None:
        if not live.first.done():
            live.first.set_exception(NotFound(f"no collection {live.collection!r}", field="collection"))
        self.leave(live)

    async def stop(self) -> None:
        """Abandon what is watched, and wait for the threads."""
        self.abandon()
        await self._parking.stop()
        # What runs in a thread can't be cancelled, and ends soon.
        if tasks := [*([self._task] if self._task else []), *self._searches]:
            await asyncio.wait(tasks)

    async def _run(self, standing: Standing) -> None:
        try:
            while self._lives:
                await self._turn(standing)
                await self._wake.wait()
                self._wake.clear()
        except Exception as error:  # without this task they would be told nothing; they come back, and watch anew
            internal(error, collection=self._place.name)
            for live in list(self._lives):
                self._end(live)
                live.sink.abandon()
        self._standing = self._task = None
        self._recent = RecentVectors()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._by_number.clear()
        self._found.clear()
        self._gone.clear()

    async def _turn(self, standing: Standing) -> None:
        for live in self._gone:
            if live.number is not None:
                standing.remove(live.number)
                del self._by_number[live.number]
        self._gone.clear()
        commits, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        self._follow(commits)
        found = self._usable()
        if self._showing:
            self._recent.note_commits(commits)
            for one in found:
                self._recent.note_hits(one.nearest.hits if one.live.shows_vectors else ())
        if commits or found:
            self._take_in(await self._applied(standing, commits, found))
        self._search_on()
        await self._tell(standing)

    async def _applied(self, standing: Standing, commits: Sequence[Applied], found: Sequence[Found]) -> Turn:
        """Apply commits and what was found: in a thread, unless that is done sooner than a thread would have begun."""
        pairs = len(standing) * sum(len(applied.events) for applied in commits)
        if pairs <= _PAIRS_AT_ONCE and len(found) <= _FOUND_AT_ONCE:
            return watches.apply(standing, commits, found)
        return await self._place.read(partial(watches.apply, standing, commits, found))

    def _usable(self) -> list[Found]:
        """Take what searches found, in the order they began, but for what is older than what a watch has."""
        found, self._found = sorted(self._found, key=lambda one: one.ticket), []
        usable = []
        for one in found:
            live = one.live
            if live.closed or one.ticket < live.least_ticket:
                continue
            if one.vector_version >= live.vector_version:
                usable.append(one)
            elif one.ticket == live.ticket:
                self._want(live)  # the document was deleted before it was known which vector it had last
        return usable

    def _follow(self, commits: Sequence[Applied]) -> None:
        """Search anew for watches that follow documents which have other vectors now."""
        if not self._followed:
            return
        for applied in commits:
            for event in applied.events:
                if not isinstance(event, Change) or event.document.vector_version is None:
                    continue
                for live in self._followed.get(event.document.id, ()):
                    if event.document.vector_version > live.vector_version:
                        if event.vector is not None:
                            live.latest = event.document.vector_version, event.vector
                        self._want(live)

    def _take_in(self, turn: Turn) -> None:
        for one in turn.taken:
            live = one.live
            assert live.number is not None, "it was added"
            self._by_number[live.number] = live
            live.vector_version, live.watch = one.vector_version, one.watch
            if one.ticket >= live.least_ticket:
                live.settled = True
                self._mark(live)
        for number in turn.changed:
            self._mark(self._by_number[number])
        for number in turn.short:
            self._want(self._by_number[number])
        for one in turn.late:
            if one.ticket == one.live.ticket:
                self._want(one.live)
        self._found += turn.early

    def _mark(self, live: Live) -> None:
        """Look in this turn, or the next, whether there is something to tell."""
        if not live.closed:
            self._dirty[live] = None
            self._wake.set()

    def _want(self, live: Live) -> None:
        """Search for a watch, and tell it nothing before that, or a search under way, has found something."""
        if not live.closed:
            live.ticket += 1
            live.settled = False
            self._wanting[live] = None
            self._wake.set()

    async def _tell(self, standing: Standing) -> None:
        """Tell watches what has changed; those that can't be told now are looked at again once they can."""
        dirty, self._dirty = [*self._dirty], {}
        for start in range(0, len(dirty), _TOLD_AT_ONCE):
            some = dirty[start : start + _TOLD_AT_ONCE]
            vectors = await self._vectors(standing, some)
            known = {live.number: live for live in some if live.number is not None and self._known(standing, live)}
            differences = standing.differences(number for number, live in known.items() if live.known is None)
            told = [number for number, live in known.items() if self._tell_one(standing, live, vectors, differences)]
            standing.tell(told)
            await asyncio.sleep(0)

    async def _vectors(self, standing: Standing, lives: Sequence[Live]) -> dict[int, bytes]:
        """Return the vectors that some watches show, as far as they are to be had."""
        now = asyncio.get_running_loop().time()
        found: dict[int, bytes] = {}
        lacking: list[int] = []
        for live in lives:
            if not live.shows_vectors or not self._known(standing, live):
                continue
            if now < live.due or self._parking.holds(live.sink):
                continue
            for version in _versions(standing, live):
                vector = self._recent.get(version)
                if vector is None:
                    lacking.append(version)
                else:
                    found[version] = vector
        if lacking:
            found |= await self._place.read(partial(self._place.collection.vectors, lacking))
        return found

    def _known(self, standing: Standing, live: Live) -> bool:
        """Tell whether it is known what a watch should show; where not, it is marked when its search is in."""
        return not live.closed and live.settled and live.number is not None and not standing.waits(live.number)

    def _tell_one(
        self, standing: Standing, live: Live, vectors: watches.Vectors, differences: Mapping[int, Difference]
    ) -> bool:
        """Tell a watch what there is to tell; return whether that was its difference."""
        assert live.number is not None, "it is known"
        if live.closed:
            return False  # one told before it has ended it
        if live.changed is not None:
            if self._has_news(standing, live, live.number, differences):
                live.changed()
            return True
        first = not live.first.done()
        if not first and not (live.begun and self._takes(live)):
            return False
        if live.shows_vectors and not all(version in vectors for version in _versions(standing, live)):
            # A document has another vector by now: the commit that brought it is on its way here.
            asyncio.get_running_loop().call_later(_AGAIN_S, self._mark, live)
        elif first:
            ranked = standing.answer(live.number)
            live.first.set_result(watches.watching(live, standing.index_version, ranked, vectors))
        elif difference := differences.get(live.number):
            live.write(watches.update(live, standing.index_version, difference, vectors))
            self.updates += 1
            live.due = asyncio.get_running_loop().time() + live.least_pause_s
            return True
        return False

    def _takes(self, live: Live) -> bool:
        """Tell whether a watch may be told something now; where not, it is looked at again when it may."""
        loop = asyncio.get_running_loop()
        if loop.time() < live.due:
            if live.timer is None:
                live.timer = loop.call_at(live.due, self._is_due, live)
            return False
        if not live.sink.offer(b""):
            self._parking.park(live)
            return False
        return True

    def _has_news(self, standing: Standing, trace: Live, number: int, differences: Mapping[int, Difference]) -> bool:
        """Tell whether a trace's answer isn't what whoever moved it knows of."""
        if trace.known is None:
            return number in differences
        known, trace.known = trace.known, None
        if known.index_version >= standing.index_version:
            return False
        answer = {document.id for document in standing.shown(number)}
        return answer != {hit.document.id for hit in known.hits[: trace.watch.k]}

    def _is_due(self, live: Live) -> None:
        live.timer = None
        self._mark(live)

    def _search_on(self) -> None:
        """Start searches, as many as may run at once."""
        ready = (live for live in self._wanting if not live.searching)
        for live in list(itertools.islice(ready, _SEARCHES_AT_ONCE - self._searching)):
            del self._wanting[live]
            live.searching = True
            self.searches += 1
            self._searching += 1
            task = asyncio.create_task(self._search(live))
            self._searches.add(task)
            task.add_done_callback(self._searches.discard)

    async def _search(self, live: Live) -> None:
        ticket = live.ticket
        try:
            found = await self._place.read(partial(watches.search, self._place.collection, live, ticket))
            self._found.append(found)
        except HotindexError as error:
            self._failed(live, error)
        except Exception as error:  # one watch's fault must not be everyone's
            self._failed(live, internal(error, collection=self._place.name, watch=live.watch_id))
        finally:
            live.searching = False
            self._searching -= 1
            self._wake.set()

    def _failed(self, live: Live, error: HotindexError) -> None:
        if not live.first.done():
            live.first.set_exception(error)
        elif not live.closed:
            asyncio.get_running_loop().call_later(_RETRY_S, self._want, live)


def _versions(standing: Standing, live: Live) -> list[int]:
    """Return the vector_versions of what a watch shows."""
    assert live.number is not None, "it has an answer"
    return [one.vector_version for one in standing.shown(live.number) if one.vector_version is not None]


def _size_bytes(applied: Applied) -> int:
    return sum(event.size_bytes for event in applied.events)

"""What is recommended to users who are watched, told whenever it is something else.

A feed is made anew when its user's profile changes, when an item of its list does, or when what is near the profile does,
for which it has standing queries among the live queries of its collection. Who has no direction yet is shown what is
popular and new, and looked at again when items come, at most once a second. What happens while a feed is made, while its
socket is full or while its `max_rate` forbids it comes with the next.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial

from gateway.engine.types import Applied, Change, EventType, Hit
from gateway.errors import HotindexError, NotFound
from gateway.faults import internal
from gateway.live.types import Watch
from gateway.node.forms import Form
from gateway.node.recommending import Ask, Near, Recommended
from gateway.node.users import Users
from gateway.node.watches import Live, Opened
from gateway.node.watching import Watching
from gateway.protocol import messages
from gateway.protocol.timestamps import iso
from gateway.push.room import Sink

TRACED = 10
"""How many of the items nearest to each of those last liked have to stay the same, for a feed to be left alone."""

SEEN_SINCE = 4
"""So many of them at most may be items that were seen since it is known which they are."""

_AT_ONCE = 16
"""How many are made at once at most, so that who asks for a list needn't wait for those of all others."""

_RETRY_S = 1.0
_NEWS_S = 1.0


@dataclass(eq=False, slots=True)
class Feed:
    """A user watched by a client. `first` becomes its first answer."""

    collection: str
    watch_id: str
    form: Form
    sink: Sink
    ask: Ask
    least_pause_s: float
    first: asyncio.Future[messages.Watching]
    listed: frozenset[str] = frozenset()
    told: tuple[str, ...] = ()
    traces: dict[bytes, Live] = field(default_factory=dict)
    """By their queries."""
    version: int = 0
    """The profile's, when it was told last: another one is told even if it changes nothing."""
    dirty: bool = False
    queued: bool = False
    begun: bool = False
    closed: bool = False
    due: float = -math.inf

    @property
    def may_be_made(self) -> bool:
        """Not between its first answer and its beginning, when nothing can be told."""
        return not self.closed and (self.begun or not self.first.done())

    def write(self, message: messages.Message) -> None:
        self.sink.write(self.form.written(message))


class Feeds:
    """Call on the event loop. `now` gives microseconds since the epoch."""

    def __init__(self, name: str, users: Users, watching: Watching, now: Callable[[], int]) -> None:
        self._name = name
        self._users = users
        self._watching = watching
        self._now = now
        self._feeds: dict[str, set[Feed]] = {}
        self._showing: dict[str, set[Feed]] = {}
        self._strangers: set[Feed] = set()
        self._news: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._ended = False
        users.learned.append(self._learned)

    def __len__(self) -> int:
        return sum(map(len, self._feeds.values()))

    async def watch(self, ask: Ask, watch_id: str, least_pause_s: float, form: Form, sink: Sink) -> Opened:
        """Return a feed that is told of changes once its answer was written and `begin` called.

        Where this is cancelled, there is none.
        """
        if self._ended:
            raise NotFound(f"no collection {self._name!r}", field="collection")
        first = asyncio.get_running_loop().create_future()
        feed = Feed(self._name, watch_id, form, sink, ask, least_pause_s, first)
        self._feeds.setdefault(ask.user_id, set()).add(feed)
        self._mark(feed)
        try:
            reply = await first
        except BaseException:
            self._leave(feed)
            raise
        return Opened(feed, reply, partial(self._begin, feed), partial(self._leave, feed), ask.user_id)

    def items_changed(self, applied: Applied) -> None:
        """Look again at the feeds that a commit of the collection concerns, but for those its live queries tell of."""
        if not self._feeds:
            return
        for event in applied.events:
            if isinstance(event, Change):
                for feed in self._showing.get(event.document.id, ()):
                    self._mark(feed)
                if event.event_type is EventType.INSERT and self._strangers and self._news is None:
                    self._news = asyncio.get_running_loop().call_later(_NEWS_S, self._tell_strangers)

    def look_again(self) -> None:
        """Make every feed anew: the profiles may be others."""
        for feed in self._all():
            self._mark(feed)

    def dismiss(self) -> None:
        """Tell every feed that there is no more to come: what is known of users is dropped."""
        for feed in self._all():
            self._end(feed)
            if feed.begun:
                feed.write(messages.Unwatched(watch_id=feed.watch_id, collection=self._name))

    def close(self) -> None:
        """Dismiss all, and take no others: the collection is dropped."""
        self.dismiss()
        self._ended = True

    def abandon(self) -> None:
        """Close the connections of all feeds: they come back."""
        for feed in self._all():
            self._end(feed)
            feed.sink.abandon()
        self._ended = True

    async def stop(self) -> None:
        self.abandon()
        if self._news is not None:
            self._news.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _all(self) -> list[Feed]:
        return [feed for feeds in self._feeds.values() for feed in feeds]

    def _begin(self, feed: Feed) -> None:
        feed.begun = True
        if feed.closed:
            feed.write(messages.Unwatched(watch_id=feed.watch_id, collection=self._name))
        elif feed.dirty:
            self._queue(feed)

    def _leave(self, feed: Feed) -> None:
        """Remove a feed; nothing is written to it after."""
        if feed.closed:
            return
        feed.closed = True
        self._strangers.discard(feed)
        self._show(feed, frozenset())
        feeds = self._feeds[feed.ask.user_id]
        feeds.discard(feed)
        if not feeds:
            del self._feeds[feed.ask.user_id]
        for trace in feed.traces.values():
            self._watching.leave(trace)

    def _end(self, feed: Feed) -> None:
        if not feed.first.done():
            feed.first.set_exception(NotFound(f"no collection {self._name!r}", field="collection"))
        self._leave(feed)

    def _learned(self, user_ids: Sequence[str]) -> None:
        for user_id in user_ids:
            for feed in self._feeds.get(user_id, ()):
                self._mark(feed)

    def _tell_strangers(self) -> None:
        self._news = None
        for feed in self._strangers:
            self._mark(feed)

    def _mark(self, feed: Feed) -> None:
        """Make a feed anew, now or when it can be told."""
        feed.dirty = True
        self._queue(feed)

    def _queue(self, feed: Feed) -> None:
        if feed.queued or not feed.may_be_made:
            return
        feed.queued = True
        task = asyncio.create_task(self._make(feed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, feed: Feed) -> None:
        try:
            while feed.dirty and feed.may_be_made:
                if feed.begun and not await self._can_be_told(feed):
                    return
                async with self._turns:
                    made = await self._make_once(feed)
                if not made:
                    await asyncio.sleep(_RETRY_S)
        finally:
            feed.queued = False

    async def _can_be_told(self, feed: Feed) -> bool:
        """Wait until a feed can be told something; return False where its connection is gone, which ends it."""
        if (pause_s := feed.due - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(pause_s)
        while not feed.sink.offer(b""):
            if not await feed.sink.drained():
                return False  # it may not take anything for a while yet: a loop would never let go
        return True

    async def _make_once(self, feed: Feed) -> bool:
        """Return whether it was made, or needn't be any more."""
        if feed.closed:
            return True
        feed.dirty = False
        try:
            found = await self._users.recommend(feed.ask)
        except HotindexError as error:
            return self._failed(feed, error)
        except Exception as error:  # one feed's fault must not be everyone's
            return self._failed(feed, internal(error, collection=self._name, watch=feed.watch_id))
        if not feed.closed:
            self._take(feed, found)
        return True

    def _failed(self, feed: Feed, error: HotindexError) -> bool:
        """Return whether that was all."""
        if not feed.first.done():
            feed.first.set_exception(error)
            return True
        feed.dirty = True
        return False

    def _take(self, feed: Feed, found: Recommended) -> None:
        ids = tuple(hit.document.id for hit in found.hits)
        if not feed.first.done():
            feed.first.set_result(_watching(feed, found))
        elif found.version != feed.version or ids != feed.told:
            feed.write(_update(feed, found.hits, self._now()))
            feed.due = asyncio.get_running_loop().time() + feed.least_pause_s
        feed.told, feed.version = ids, found.version
        # The client first: nothing can come in between.
        self._show(feed, frozenset(ids))
        self._trace(feed, found.near, found.seen)
        if found.near:
            self._strangers.discard(feed)
        else:
            self._strangers.add(feed)

    def _show(self, feed: Feed, listed: frozenset[str]) -> None:
        for item_id in feed.listed - listed:
            showing = self._showing[item_id]
            showing.discard(feed)
            if not showing:
                del self._showing[item_id]
        for item_id in listed - feed.listed:
            self._showing.setdefault(item_id, set()).add(feed)
        feed.listed = listed

    def _trace(self, feed: Feed, near: Sequence[Near], seen: Set[str]) -> None:
        """Have the live queries tell when what is near the profile changes.

        What traces an item still liked goes on, until so much was seen since that it follows little else.
        """
        wanted = {one.query.tobytes(): one for one in near}
        kept, free = {}, []
        for query, trace in feed.traces.items():
            followed = query in wanted and len(seen - trace.watch.excluded) <= SEEN_SINCE
            if followed and not trace.closed:
                kept[query] = trace
            elif not trace.closed:
                free.append(trace)
        feed.traces = kept
        for query, one in wanted.items():
            if query in kept:
                continue
            watch = Watch(one.query, TRACED, feed.ask.where, excluded=seen)
            if free:
                feed.traces[query] = free.pop()
                self._watching.move(feed.traces[query], watch, one.nearest)
            else:
                feed.traces[query] = self._watching.trace(watch, one.nearest, partial(self._mark, feed))
        for trace in free:
            self._watching.leave(trace)


def _watching(feed: Feed, found: Recommended) -> messages.Watching:
    return messages.Watching(
        watch_id=feed.watch_id,
        collection=feed.collection,
        index_version=found.index_version,
        exact=False,
        results=tuple(
            messages.WatchResult(
                id=hit.document.id, score=hit.score, metadata=feed.form.metadata(hit.document.metadata)
            )
            for hit in found.hits
        ),
    )


def _update(feed: Feed, hits: Sequence[Hit], at: int) -> messages.RecommendationUpdate:
    return messages.RecommendationUpdate(
        watch_id=feed.watch_id,
        collection=feed.collection,
        user_id=feed.ask.user_id,
        recommendations=tuple(hit.document.id for hit in hits),
        scores=tuple(hit.score for hit in hits),
        timestamp=iso(at),
    )

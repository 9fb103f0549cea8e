"""The demo's producer and observer: real ratings as hot events, and how soon room, search and a watch know of each; and
as what users do, and what is recommended to one of them then.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hotindex import Ack, Client, Document, Recommendations, Results, Update
from hotindex.watch import Watch

from gateway.demo import data, recommended
from gateway.demo.recommended import Recommended
from gateway.demo.watched import K, Watched, equal
from gateway.engine.text import build_text

COLLECTION = "movies"

_SEQUELS = 10
"""As many stay until the next one: they are to be searched for, however slow the machine is, before they go."""

_CATALOGUE_EVERY = 20
"""Among the ratings, every so many events the catalogue changes: a movie is added, renamed, or an added one removed.

An added or renamed movie has a new vector; it is looked for by a search right after its acknowledgement. Added are
sequels, in turn of the movie just rated and of one near what is watched: among 31,245 movies, those just rated seldom are.
"""

_NEAR = 10
"""From so many come the sequels near what is watched. About half of them are nearer than the fifth nearest movie."""

_RATED_EVERY_S = 0.1
"""So often somebody's rating is sent as what a user did,"""

_OWN_EVERY = 20
"""and every so many of them the user's whose recommendations are watched, so that there is time to look at them."""

_DRAIN_S = 15.0


@dataclass(slots=True)
class Tally:
    """What happened so far. Times in seconds, per event, from its sending on."""

    recommended: Recommended
    sent: int = 0
    acked: int = 0
    received: int = 0
    probed: int = 0
    found: int = 0
    in_room_s: list[float] = field(default_factory=list)
    in_search_s: list[float] = field(default_factory=list)
    latest: deque[Update] = field(default_factory=lambda: deque(maxlen=6))
    query: str = data.QUERIES[0]
    answer: Results | None = None
    watched: Watched = field(default_factory=lambda: Watched(data.WATCHED))


@dataclass(slots=True)
class Film:
    """What the producer knows of a movie."""

    name: str
    fields: dict[str, object]
    votes: int = 0
    total: int = 0
    parts: int = 1

    def sequel(self) -> dict[str, object]:
        self.parts += 1
        return {**self.fields, "name": f"{re.sub(r' [(][0-9]{4}[)]$', '', self.name)}: Part {self.parts}"}


@dataclass(frozen=True, slots=True)
class Step:
    """One event to send. `text` is what a search has to find the document by, where it got a new vector."""

    send: Document | Mapping[str, object] | None
    document_id: str
    text: str | None = None


class Replay:
    """Sends `rate` events a second on one connection, listens and watches on a second one, and searches on a third.

    `told` is called with news of the watch's list, whenever that is another one, and `recommended` likewise.
    """

    def __init__(
        self,
        movies: Sequence[Document],
        rate: float,
        told: Callable[[Watched], None],
        recommended: Callable[[Recommended], None],
    ) -> None:
        self.tally = Tally(Recommended(data.USER, self._name))
        self._sequels: dict[str, str] = {}
        self._films = {
            document.id: Film(str(fields["name"]), fields)
            for document in movies
            if (fields := dict(document.metadata or {}))
        }
        self._rate = rate
        self._told = told
        self._recommended = recommended
        self._changed = asyncio.Event()
        self._sent_at: dict[tuple[str, int], float] = {}
        self._arrived_at: dict[tuple[str, int], float] = {}
        self._complete = asyncio.Event()
        self._replayed = asyncio.Event()
        self._own = itertools.cycle([rating for rating in data.ratings() if rating[0] == data.USER])
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, url: str, seconds: float | None) -> None:
        """Replay for `seconds` (None: until cancelled), then wait until room, watch and user have had everything."""
        async with (
            Client(url) as producer,
            Client(url) as searcher,
            Client(url) as listener,
            listener.subscribe(COLLECTION) as room,
            listener.watch(COLLECTION, text=data.WATCHED, k=K, exact=True) as watch,
            listener.recommendations(data.USER, collection=COLLECTION, k=recommended.K) as user,
        ):
            near = await searcher.search(COLLECTION, text=data.WATCHED, k=_NEAR, exact=True)
            observing = (self._listen(room), self._follow(watch), self._follow_user(user), self._ask(searcher))
            observers = [asyncio.create_task(work) for work in observing]
            rating = asyncio.create_task(self._rate_on(searcher))
            try:
                async with asyncio.timeout(seconds):
                    await self._produce(producer, searcher, [hit.id for hit in near.hits])
            except TimeoutError:
                pass
            finally:
                try:
                    await self._drain()
                    self._replayed.set()
                    await rating
                    await self._compare(searcher)
                    await self._compare_user(searcher)
                finally:
                    for observer in observers:
                        observer.cancel()
                    await asyncio.gather(*observers, return_exceptions=True)

    async def _drain(self) -> None:
        await asyncio.gather(*self._tasks)
        self._settle()
        try:
            async with asyncio.timeout(_DRAIN_S):
                await self._complete.wait()
        except TimeoutError:
            return  # the summary tells what is missing

    async def _compare(self, searcher: Client) -> None:
        """Wait until the watch has the list that an exact search finds."""
        watched = self.tally.watched
        try:
            async with asyncio.timeout(_DRAIN_S):
                while not watched.agrees:
                    self._changed.clear()
                    found = await searcher.search(COLLECTION, text=watched.text, k=K, exact=True)
                    watched.agrees = equal(watched.results, found.hits)
                    if not watched.agrees:
                        await self._changed.wait()
        except TimeoutError:
            return

    async def _compare_user(self, searcher: Client) -> None:
        """Wait until the user has the list that a search finds. It is made anew after a last rating, with all others'."""
        user = self.tally.recommended
        await self._interact(searcher, *next(self._own))
        try:
            async with asyncio.timeout(_DRAIN_S):
                while not user.agrees:
                    self._changed.clear()
                    found = await searcher.search(COLLECTION, user_id=user.user_id, k=recommended.K)
                    user.agrees = user.ids == tuple(hit.id for hit in found.hits)
                    if not user.agrees:
                        await self._changed.wait()
        except TimeoutError:
            return

    async def _rate_on(self, client: Client) -> None:
        """Say what users do, until all is replayed."""
        for number, rating in enumerate(itertools.cycle(data.ratings()), 1):
            await self._interact(client, *(rating if number % _OWN_EVERY else next(self._own)))
            try:
                async with asyncio.timeout(_RATED_EVERY_S):
                    await self._replayed.wait()
                return
            except TimeoutError:
                continue

    async def _interact(self, client: Client, user_id: str, movie: str, rating: int) -> None:
        if user_id == data.USER:
            self.tally.recommended.rating(movie, rating)
        await client.interact(user_id, "rate", movie, value=rating, collection=COLLECTION)

    async def _produce(self, producer: Client, searcher: Client, near: Sequence[str]) -> None:
        started = time.perf_counter()
        for number, step in enumerate(self._steps(near)):
            await asyncio.sleep(max(0.0, started + number / self._rate - time.perf_counter()))
            self.tally.sent += 1
            self._complete.clear()
            task = asyncio.create_task(self._send(producer, searcher, step))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _steps(self, near: Sequence[str]) -> Iterator[Step]:
        added: deque[str] = deque()
        subjects = random.Random(0)
        for number, (_, movie, rating) in enumerate(itertools.cycle(data.ratings()), 1):
            film = self._films[movie]
            match number % _CATALOGUE_EVERY, (number // _CATALOGUE_EVERY) % 3:
                case 0, 1:
                    in_turn = number // _CATALOGUE_EVERY // 3 % 2
                    sequel = (film if in_turn else self._films[subjects.choice(near)]).sequel()
                    added.append(f"sequel:{number}")
                    self._sequels[added[-1]] = str(sequel["name"])
                    yield Step(Document(added[-1], metadata=sequel), added[-1], build_text(sequel))
                case 0, 2:
                    film.fields["name"] = name = f"{film.name} - event {number}"
                    yield Step({"name": name}, movie, build_text(film.fields))
                case 0, 0 if len(added) > _SEQUELS:
                    yield Step(None, added.popleft())
                case _:
                    film.votes += 1
                    film.total += rating
                    yield Step({"votes": film.votes, "mean_rating": round(film.total / film.votes, 2)}, movie)

    async def _send(self, producer: Client, searcher: Client, step: Step) -> None:
        sent_at = time.perf_counter()
        number = self.tally.watched.sending()
        ack: Ack
        match step.send:
            case Document():
                ack = await producer.upsert(COLLECTION, [step.send])
            case None:
                ack = await producer.delete(COLLECTION, step.document_id)
            case changes:
                ack = await producer.patch(COLLECTION, step.document_id, changes)
        (result,) = ack.results
        self.tally.acked += 1
        self._sent_at[result.id, result.version] = sent_at
        self.tally.watched.acked(number, result.id, ack.index_version, sent_at)
        self._settle()
        if step.text is not None:
            self.tally.probed += 1
            answer = await searcher.search(COLLECTION, text=step.text, k=20)
            if any(hit.id == result.id and hit.version >= result.version for hit in answer.hits):
                self.tally.found += 1
                self.tally.in_search_s.append(time.perf_counter() - sent_at)

    async def _listen(self, room: AsyncIterator[object]) -> None:
        async for update in room:
            if isinstance(update, Update) and update.document_id is not None and update.version is not None:
                self._arrived_at[update.document_id, update.version] = time.perf_counter()
                self.tally.received += 1
                self.tally.latest.append(update)
                self._settle()

    async def _follow(self, watch: Watch) -> None:
        async for change in watch:
            self.tally.watched.take(change, time.perf_counter())
            self._changed.set()
            self._told(self.tally.watched)

    async def _follow_user(self, user: Recommendations) -> None:
        async for update in user:
            if self.tally.recommended.take(update):
                self._recommended(self.tally.recommended)
            self._changed.set()

    def _name(self, movie: str) -> str:
        return self._films[movie].name if movie in self._films else self._sequels.get(movie, movie)

    def _settle(self) -> None:
        """Match arrivals with what was sent: an update may come before its writer's acknowledgement."""
        for key in self._sent_at.keys() & self._arrived_at.keys():
            self.tally.in_room_s.append(self._arrived_at.pop(key) - self._sent_at.pop(key))
        if not self._sent_at and self.tally.acked == self.tally.sent:
            self._complete.set()

    async def _ask(self, searcher: Client) -> None:
        for query in itertools.cycle(data.QUERIES):
            for _ in range(5):
                self.tally.query = query
                self.tally.answer = await searcher.search(COLLECTION, text=query, k=3)
                await asyncio.sleep(1)

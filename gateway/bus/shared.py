"""The order of commits that nodes share through Redis.

A batch is prepared against this node's state, and proposed; a script gives it its place, as far as its documents haven't
been written to since, and tells all nodes. Every node, this one too, applies what has its place strictly in order. What
came too late is prepared again once this node has caught up with what came before it.

A proposal whose answer is lost may have been given its place or not. It is known again by origin and number when it comes
round; proposed once more, at most one of the two is let through, for both write to the same documents.

Following and proposing are in one file, for they share what this node knows of the order.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import structlog

from gateway.bus import batches, scripts
from gateway.bus.agreement import Claim, Diverged, Keys, NoPeer, Peers, State, forget, read_state, restore
from gateway.bus.bus import Listener
from gateway.bus.follower import Follower
from gateway.bus.link import Link, LinkLost, LinkRefused
from gateway.bus.stream import Stream
from gateway.engine.collection import Collection
from gateway.engine.plan import HeldBack, WriteOutcome
from gateway.engine.replay import Prepared, Sequenced
from gateway.engine.types import Applied, Done, NeedsVectors, Spec, Write
from gateway.errors import StorageUnavailable
from gateway.faults import internal
from gateway.threads import run_whole

log = structlog.get_logger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_PAUSES_TO_SETTLE = 4
"""Who is away for a moment must be back before the others go on without what it has."""

_CLAIM_PAUSE_S = 0.1
_PACE_S = 0.006
"""Between proposals while more than one write gathers in less: what a batch costs Redis and each node is shared by more."""


@dataclass(frozen=True, slots=True)
class SharedOptions:
    """`origin` names this life of this node. A write waits `wait_s` for Redis at most; nodes that lost the order wait
    `settle_s` for each other. `keep_changes` are kept in the stream.
    """

    origin: str
    wait_s: float = 5.0
    settle_s: float = 3.0
    keep_changes: int = 16_384


class SharedBus:
    """A Bus for one of many nodes. `room` is awaited before changes are applied; `diverged` is told once, and the bus
    does nothing more, where the collection has to be copied anew; `stopped` is awaited at the end.
    """

    def __init__(
        self,
        collection: Collection,
        listener: Listener,
        executor: Executor,
        room: Callable[[], Awaitable[None]],
        link: Link,
        peers: Peers,
        options: SharedOptions,
        diverged: Callable[[Diverged], None],
        stopped: Callable[[], Awaitable[None]],
    ) -> None:
        self._collection = collection
        self._writer = collection.writer
        self._name = collection.spec.name
        self._listener = listener
        self._executor = executor
        self._room = room
        self._link = link
        self._peers = peers
        self._options = options
        self._diverged = diverged
        self._stopped = stopped
        self.keys = Keys.of(self._name)
        self._follower = Follower(collection.epoch, self._writer.term, collection.index_version)
        self._follower.starts = self._writer.starts
        self._numbers = itertools.count(1)
        self._awaited: set[int] = set()
        self._ended: dict[int, Done] = {}
        self._open: set[int] = set()
        self._unknowable: set[int] = set()
        self._reached: list[tuple[int, int, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._away_since = self._clock()
        self._paced_until = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._audited = 0
        self._refusal: str | None = None
        """Why Redis refused a proposal lately, if it did: all else may not show it."""
        self._limit: asyncio.Timeout | None = None
        self._stream = Stream(link, self.keys.log)
        self._task: asyncio.Task[None] | None = None
        self.fault: str | None = "it has not heard of the other nodes yet"

    @property
    def spec(self) -> Spec:
        return self._collection.spec

    @property
    def epoch(self) -> str:
        return self._follower.epoch

    @property
    def position(self) -> int:
        return self._collection.index_version

    @property
    def term(self) -> int:
        return self._writer.term

    @property
    def gather_s(self) -> float:
        """How long writes should gather before the next batch."""
        return max(0.0, self._paced_until - self._clock())

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"follow {self._name}")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._stopped()

    async def probe(self) -> None:
        """What is at fault is looked at all the time."""

    def take(self, message: bytes) -> None:
        """Take a message of the channel."""
        try:
            self._follower.take(*batches.decode_header(message))
        except ValueError as error:
            log.warning("no_batch", collection=self._name, reason=str(error))
            self._follower.hole = True
        self._wake.set()

    def distrust(self) -> None:
        """The connection was lost, or Redis doesn't know what it should: look at everything again before the next write."""
        if self._ready.is_set():
            self._ready.clear()
            self._away_since = self._clock()
        self._follower.stale = self._follower.hole = True
        self._wake.set()

    def look(self) -> None:
        """Look whether something has been missed."""
        self._follower.hole = True
        self._wake.set()

    async def audit(self) -> bool:
        """Look whether all that was given its place before the last call has come by the channel; True where it hasn't,
        which no fault of the connection explains.
        """
        if not self._ready.is_set():
            self._audited = 0
            return False
        if self._refusal is not None:
            # Whether it still holds, the next write tells.
            self.fault = self._refusal = None
        missed = self._follower.position < self._audited
        state = await read_state(self._link, self.keys)
        if state is None or state.term != self._follower.term:
            self.distrust()
            return False
        self._audited = state.head
        if missed:
            self.look()
        return missed

    # Following: one task, which alone applies.

    async def _run(self) -> None:
        longest_s = max(_FIRST_PAUSE_S, min(_LONGEST_PAUSE_S, self._options.settle_s / _PAUSES_TO_SETTLE))
        while True:
            try:
                await self._follow()
            except Diverged as error:
                self.distrust()
                self.fault = f"it has to be copied anew: {error}"
                self._diverged(error)
                return
            except (LinkLost, LinkRefused, NoPeer, StorageUnavailable) as error:
                self._note(str(error))
            except Exception as error:  # without this task the node would stand still
                self._note(internal(error, collection=self._name).message)
                # Whatever it was, what waits to be applied is read again.
                self._follower.jump(self.position)
            self.distrust()
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, longest_s)

    def _note(self, fault: str) -> None:
        if fault != self.fault:
            log.warning("not_following", collection=self._name, reason=fault)
        self.fault = fault

    async def _follow(self) -> None:
        """Do what is to be done next, until nothing is; then wait."""
        follower = self._follower
        while True:
            if follower:
                await self._apply()
            elif follower.stale:
                await self._agree()
            elif follower.hole:
                await self._fill()
            else:
                if not self._ready.is_set():
                    self.fault = self._refusal
                    self._ready.set()
                    self._pause_s = _FIRST_PAUSE_S
                    log.info("following", collection=self._name, index_version=self.position, term=follower.term)
                self._wake.clear()
                await self._wake.wait()
                continue

    async def _apply(self) -> None:
        await self._room()
        if (prepared := self._follower.confirmed) is not None:
            applied = await run_whole(self._executor, partial(self._writer.confirm, prepared))
            self._follower.applied(1)
            self._publish(applied)
            return
        found = self._follower.next()
        replay = partial(self._writer.replay, found, with_vectors=self._listener.wants_vectors)
        applied, ended = await run_whole(self._executor, replay)
        self._follower.applied(len(found))
        proposals = itertools.chain.from_iterable(batch.proposals for batch in found)
        for proposal, done in zip(proposals, ended, strict=True):
            if proposal.origin == self._options.origin and proposal.number in self._awaited:
                self._ended[proposal.number] = done
        self._publish(applied)

    def _publish(self, applied: Applied) -> None:
        try:
            self._listener.publish(applied)
        except Exception as error:  # what is applied stays so, whoever fails to pass it on
            internal(error, collection=self._name)
        if self._limit is not None and not self._limit.expired():
            # Waiting for one's turn isn't waiting for Redis.
            self._limit.reschedule(self._clock() + self._options.wait_s)
        while self._reached and self._reached[0][0] <= applied.index_version:
            _, _, reached = heapq.heappop(self._reached)
            if not reached.done():
                reached.set_result(None)

    async def _agree(self) -> None:
        """See to it that Redis holds what the nodes agree on, and that this node is part of it."""
        follower = self._follower
        follower.stale = False
        claimed = False
        while not (state := await self._state()):
            if follower and not claimed:
                # What has come has to be among what this node says it holds.
                follower.stale = True
                return
            claimed = True
            claim = Claim(self._options.origin, self.position, self._writer.term, follower.starts)
            expected = self._peers.expected(self._name)
            if not await restore(self._link, self.keys, follower.epoch, claim, expected, self._options.settle_s):
                await asyncio.sleep(_CLAIM_PAUSE_S)
        # Up to where a term began that only one side knows of, both have the same.
        apart = [(start, term) for term, start in {*follower.starts} ^ {*state.starts}]
        if apart and self.position > min(apart)[0]:
            start, term = min(apart)
            raise Diverged(f"it is at {self.position}, and term {term} began at {start}", start)
        if self.position > state.head:
            raise Diverged(f"it is at {self.position}, the others are at {state.head}", state.head)
        follower.starts = state.starts
        if state.term != follower.term:
            # What still waits was placed in a term that is over; as far as it holds, it is read again.
            follower.term = state.term
            follower.jump(self.position)
            self._give_up(state.starts[-1][1])
        if state.term != self._writer.term:
            known_as = self._collection.public_epoch
            await run_whole(self._executor, partial(self._writer.begin_term, state.term, state.starts))
            if known_as != self._collection.public_epoch:
                self._listener.renewed()
        follower.hole = True
        if self.position < state.floor:
            await self._catch_up()

    def _give_up(self, agreed: int) -> None:
        """Let those go on who wait for what came after `agreed`: it won't come."""
        for index_version, _, reached in self._reached:
            if index_version > agreed and not reached.done():
                reached.set_result(None)

    async def _state(self) -> State | None:
        """Return what Redis holds; None where that isn't valid. Raises NoPeer for another epoch."""
        state = await read_state(self._link, self.keys)
        if state is not None and state.epoch != self._follower.epoch:
            if not await self._peers.dropped(state.epoch):
                raise NoPeer(f"it has epoch {self._follower.epoch} here, and elsewhere {state.epoch}")
            await forget(self._link, self.keys, state.epoch)
            return None
        if state is None and await self._peers.dropped(self._follower.epoch):
            raise NoPeer("it was dropped elsewhere")
        return state

    async def _fill(self) -> None:
        """Read what is missing from the stream."""
        follower = self._follower
        follower.hole = False
        entries, more = await self._stream.after(self._follower.position)
        if not entries:
            state = await self._state()
            if state is None or state.term != follower.term:
                follower.stale = True
                return
            if state.head <= follower.position:
                return
            # It may have got its place just now.
            entries, more = await self._stream.after(self._follower.position)
        if not entries or (
            entries[0][0].term <= follower.term and entries[0][0].first_index_version > follower.position + 1
        ):
            # The stream begins later: the rest is gone.
            await self._catch_up()
            return
        try:
            for header, body in entries:
                follower.take(header, body)
        except ValueError as error:
            log.warning("no_batch", collection=self._name, reason=str(error))
            await self._catch_up()
            return
        if more:
            follower.hole = True

    async def _catch_up(self) -> None:
        """Take over the net change from another node."""
        follower = self._follower
        started, since = self._clock(), self.position
        follower.jump(self.position)
        self._unknowable |= self._open
        async for copy in self._peers.copies(self._name, follower.epoch, follower.term, self.position):
            await self._room()
            applied = await run_whole(self._executor, partial(self._writer.adopt, copy))
            if applied is not None:
                self._publish(applied)
        follower.jump(self.position)
        if self.position == since:
            raise NoPeer(f"no other node at hand has more than what came up to {since}")
        seconds = round(self._clock() - started, 3)
        log.info("caught_up", collection=self._name, since=since, index_version=self.position, seconds=seconds)

    async def reach(self, index_version: int) -> None:
        """Wait until this node has applied everything up to `index_version`."""
        if index_version > self.position:
            reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._reached, (index_version, next(self._numbers), reached))
            await reached

    # Proposing: one call of `commit` at a time.

    async def commit(self, writes: Sequence[Write]) -> Sequence[WriteOutcome]:
        numbers = [next(self._numbers) for _ in writes]
        outcomes: dict[int, WriteOutcome] = {}
        self._awaited.update(numbers)
        try:
            async with asyncio.timeout_at(self._due()) as self._limit:
                while len(outcomes) < len(writes):
                    await self._round(writes, numbers, outcomes)
        except TimeoutError:
            for i in range(len(writes)):
                outcomes.setdefault(i, self._unavailable())
        finally:
            self._limit = None
            for numbered in (self._awaited, self._open, self._unknowable):
                numbered.difference_update(numbers)
            for number in numbers:
                self._ended.pop(number, None)
        return [outcomes[i] for i in range(len(writes))]

    def _due(self) -> float:
        """The time until which a write waits: while Redis is away, not each anew."""
        since = self._clock() if self._ready.is_set() else self._away_since
        return since + self._options.wait_s

    def _unavailable(self) -> StorageUnavailable:
        reason = self.fault or "it did not answer in time"
        return StorageUnavailable(f"collection {self._name!r} can't be written to at present: {reason}")

    async def _round(self, writes: Sequence[Write], numbers: Sequence[int], outcomes: dict[int, WriteOutcome]) -> None:
        """Prepare and propose what hasn't ended; note what has."""
        await self._ready.wait()
        self._recognize(writes, numbers, outcomes)
        left = [i for i in range(len(writes)) if i not in outcomes]
        if not left:
            return
        some = [writes[i] for i in left]
        origin, with_vectors = self._options.origin, self._listener.wants_vectors
        some_numbers = [numbers[i] for i in left]
        prepare = partial(self._writer.prepare, some, origin, some_numbers, with_vectors=with_vectors)
        prepared = await run_whole(self._executor, prepare)
        if self._recognize(writes, numbers, outcomes):
            # It was prepared a second time, on top of itself.
            return
        placed = [j for j, outcome in enumerate(prepared.outcomes) if not isinstance(outcome, NeedsVectors | HeldBack)]
        try:
            ended = await self._propose(some, prepared, placed) if placed else {}
        except (LinkLost, LinkRefused) as error:
            self._refusal = str(error) if isinstance(error, LinkRefused) else None
            self._note(str(error))
            self.distrust()
            return
        self.fault = self._refusal = None
        for j, outcome in enumerate(prepared.outcomes):
            if j in ended:
                outcomes[left[j]] = ended[j]
            elif isinstance(outcome, NeedsVectors | HeldBack):
                outcomes[left[j]] = outcome

    def _recognize(self, writes: Sequence[Write], numbers: Sequence[int], outcomes: dict[int, WriteOutcome]) -> bool:
        """Note how those ended that were applied meanwhile, and which may have been, which nobody can tell any more: those
        whose answer was lost, where this node has copied what came then. An event id tells it nevertheless.
        """
        before = len(outcomes)
        for i, number in enumerate(numbers):
            if i in outcomes:
                continue
            if number in self._ended:
                outcomes[i] = self._ended[number]
            elif number in self._unknowable and writes[i].event_id is None:
                outcomes[i] = StorageUnavailable(f"the answer was lost: collection {self._name!r} may have it or not")
        return len(outcomes) > before

    async def _propose(
        self, writes: Sequence[Write], prepared: Prepared, placed: Sequence[int]
    ) -> dict[int, WriteOutcome]:
        """Propose the writes that are `placed`; return how those ended that are applied now. The others come again."""
        proposals = {n: prepared.proposals[j] for n, j in enumerate(placed) if j in prepared.proposals}
        checked = [batches.keys((o.id for o in writes[j].operations), writes[j].event_id) for j in placed]
        meta, body = batches.encode(checked, proposals)
        if len(placed) > 1:
            self._paced_until = self._clock() + _PACE_S
        term = self._follower.term
        proposed = {proposal.number for proposal in proposals.values()} - self._open
        self._open |= proposed
        reply = await self._link.run(
            scripts.PROPOSE,
            (self.keys.state, self.keys.log, self.keys.recent),
            (
                self._follower.epoch,
                prepared.index_version,
                self._options.keep_changes,
                self.keys.channel,
                self._link.publish_command(),
                meta,
                body,
                term,
            ),
        )
        self._open -= proposed
        self._unknowable -= proposed
        if reply[0] == b"unknown":
            self.distrust()
            return {}
        head = int(reply[1])
        if reply[0] == b"behind":
            self.look()
            await self.reach(head)
            return {}
        ended: dict[int, WriteOutcome] = {}
        last = head
        for n, j in enumerate(placed):
            if reply[2][n : n + 1] == b"1":
                last += len(proposals[n].entries) if n in proposals else 0
                outcome = prepared.outcomes[j]
                ended[j] = Done(last, outcome.results) if isinstance(outcome, Done) else outcome
        accepted = tuple(proposal for n, proposal in proposals.items() if placed[n] in ended)
        if accepted and self._follower.term == term:
            # What is applied to the state it was prepared against needn't be looked up, and planned, once more.
            whole = head == prepared.index_version and len(accepted) == len(prepared.proposals)
            batch = Sequenced(head + 1, last, accepted)
            self._follower.take_own(batch, len(body), prepared if whole else None)
            self._wake.set()
        elif head > self._follower.position:
            self.look()
        await self.reach(last)
        # Nodes that lost the order may have agreed on less since then; what they gave up comes again.
        return ended if self._follower.holds(term, last) else {}

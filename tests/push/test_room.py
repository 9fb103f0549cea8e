"""A room with subscribers whose sockets the test opens and closes, against the store's net changes."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.collection import Collection
from gateway.engine.filter import Filter
from gateway.engine.types import Page, Patch, Remove, Span
from gateway.protocol.codec import JSON
from gateway.push.events import Events, Variant
from gateway.push.room import Room, RoomLimits, Subscriber
from tests.engine.support import make, put, write


class Pipe:
    """A sink that takes what it is given while it is open."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.open = asyncio.Event()
        self.open.set()
        self.abandoned = self.slow = self.ended = False

    def offer(self, data: bytes) -> bool:
        if self.open.is_set():
            self.data += data
        return self.open.is_set()

    def write(self, data: bytes) -> None:
        self.data += data

    async def drained(self) -> bool:
        await self.open.wait()
        return True

    def abandon(self, *, slow: bool = False) -> None:
        self.abandoned = True
        self.slow = slow

    def end(self) -> None:
        self.ended = True

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for payload in _payloads(bytes(self.data))]

    def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for message in self.messages():
            if message["type"] == "index_update":
                found += message["events"] if "events" in message else [message["event"]]
        return found


def _payloads(data: bytes) -> Iterator[bytes]:
    while data:
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
        yield data[start : start + size]
        data = data[start + size :]


class Stage:
    """A collection, its room, and the numbers of documents written so far."""

    def __init__(self, collection: Collection, limits: RoomLimits = RoomLimits(), writing_s: float = 0.0) -> None:
        self.collection = collection
        self.reads = 0
        clock = (n * writing_s for n in itertools.count()).__next__
        self.room = Room("things", collection.epoch, collection.index_version, self._read, limits, clock=clock)

    async def _read(self, span: Span, limit: int, limit_bytes: int, with_vectors: bool) -> Page:
        self.reads += 1
        await asyncio.sleep(0)
        return self.collection.changes(span, limit, limit_bytes, with_vectors=with_vectors)

    def commit(self, *operations: Any, atomic: bool = False) -> None:
        writes = [write(*operations, atomic=atomic)]
        applied = self.collection.commit(writes, with_vectors=self.room.wants_vectors).applied
        if applied:
            self.room.publish(applied)

    def join(self, pipe: Pipe, since: int | None = None, **how: Any) -> Subscriber:
        return self.room.join(Variant("things", JSON, **how), pipe, since)

    async def settled(self) -> None:
        """Wait until everyone whose socket is open is at the head."""
        while self.room.behind:
            await asyncio.sleep(0)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    collection = make(tmp_path / "things")
    yield Stage(collection)
    collection.close()


def positions(pipe: Pipe) -> list[int]:
    return [event["index_version"] for event in pipe.events()]


def test_a_live_subscriber_gets_each_event_once(stage: Stage) -> None:
    pipe = Pipe()
    stage.join(pipe)
    stage.commit(put("a", 1, 2, 3, 4, metadata={"x": 1}))
    stage.commit(put("a", metadata={"x": 2}), put("b", 1, 2, 3, 4))
    stage.commit(put("a", 4, 3, 2, 1))
    stage.commit(Remove("a"))
    assert [(e["event_type"], e["document_id"], e["index_version"], e["version"]) for e in pipe.events()] == [
        ("insert", "a", 1, 1),
        ("update", "a", 2, 2),
        ("insert", "b", 3, 1),
        ("refresh", "a", 4, 3),
        ("delete", "a", 5, 4),
    ]
    assert pipe.events()[1]["metadata"] == {"x": 2}
    assert "metadata" not in pipe.events()[4]


async def test_resume_sends_the_net_change_and_goes_on_live(stage: Stage) -> None:
    for i in range(20):
        stage.commit(put(f"d{i % 5}", i, 0, 0, 0))
    stage.commit(Remove("d0"))
    stage.room._log.clear()
    pipe = Pipe()
    stage.join(pipe, since=10)
    stage.commit(put("late", 1, 1, 1, 1))
    await stage.settled()
    stage.commit(put("later", 1, 1, 1, 1))
    events = pipe.events()
    assert [event["document_id"] for event in events] == ["d1", "d2", "d3", "d4", "d0", "late", "later"]
    assert positions(pipe) == sorted(set(positions(pipe)))
    assert stage.reads


async def test_resume_is_conflated_also_where_the_log_has_it_all(stage: Stage) -> None:
    for i in range(5):
        stage.commit(put("a", i, 0, 0, 0))
    pipe = Pipe()
    stage.join(pipe, since=1)
    await stage.settled()
    assert positions(pipe) == [5]


async def test_since_zero_begins_with_a_reset(stage: Stage) -> None:
    stage.commit(put("a", 1, 2, 3, 4))
    pipe = Pipe()
    stage.join(pipe, since=0)
    await stage.settled()
    first, second = pipe.messages()
    assert first == {"type": "reset", "collection": "things", "epoch": stage.collection.epoch}
    assert second["event"]["event_type"] == "insert"


async def test_a_full_socket_costs_the_others_nothing_and_catches_up_conflated(stage: Stage) -> None:
    slow, fast = Pipe(), Pipe()
    stage.join(slow)
    stage.join(fast)
    stage.commit(put("a", 0, 0, 0, 0))
    slow.open.clear()
    for i in range(1, 50):
        stage.commit(put("a", i, 0, 0, 0))
    assert len(positions(fast)) == 50
    assert positions(slow) == [1]
    stage.room._log.clear()
    slow.open.set()
    await stage.settled()
    assert positions(slow) == [1, 50]
    stage.commit(put("a", 99, 0, 0, 0))
    assert positions(slow) == [1, 50, 51]


async def test_from_the_log_nothing_is_conflated(stage: Stage) -> None:
    slow = Pipe()
    stage.join(slow)
    slow.open.clear()
    for i in range(5):
        stage.commit(put("a", i, 0, 0, 0))
    slow.open.set()
    await stage.settled()
    assert positions(slow) == [1, 2, 3, 4, 5]
    assert not stage.reads


def test_the_log_is_bounded(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    stage = Stage(collection, RoomLimits(log_bytes=20_000))
    for i in range(500):
        stage.commit(put("a", i, 0, 0, 0, metadata={"text": "x" * 100}))
    assert stage.room._log_bytes <= 20_000
    assert 10 < len(stage.room._log) < 500
    collection.close()


def test_a_filter_shows_who_comes_stays_and_leaves(stage: Stage) -> None:
    pipe = Pipe()
    stage.join(pipe, where=Filter({"kind": "a"}))
    stage.commit(put("1", 0, 0, 0, 1, metadata={"kind": "a"}))
    stage.commit(put("2", 0, 0, 0, 1, metadata={"kind": "b"}))
    stage.commit(put("1", metadata={"kind": "b"}))
    stage.commit(put("2", metadata={"kind": "a"}))
    stage.commit(put("1", metadata={"kind": "c"}))
    stage.commit(Remove("1"))
    stage.commit(Remove("2"))
    seen = [(e["event_type"], e["document_id"], e.get("left", False)) for e in pipe.events()]
    assert seen == [("insert", "1", False), ("update", "1", True), ("update", "2", False), ("delete", "2", False)]


async def test_a_filtered_resume_tells_what_may_have_left(stage: Stage) -> None:
    stage.commit(put("1", 0, 0, 0, 1, metadata={"kind": "a"}), put("2", 0, 0, 0, 1, metadata={"kind": "a"}))
    stage.commit(Patch("1", {"kind": "b"}), put("3", 0, 0, 0, 1, metadata={"kind": "b"}), Remove("2"))
    stage.room._log.clear()
    pipe = Pipe()
    stage.join(pipe, since=2, where=Filter({"kind": "a"}))
    await stage.settled()
    seen = [(e["event_type"], e["document_id"], e.get("left", False)) for e in pipe.events()]
    assert seen == [("update", "1", True), ("delete", "2", False)]


def test_a_batch_shares_a_frame_where_asked_for(stage: Stage) -> None:
    single, batched = Pipe(), Pipe()
    stage.join(single)
    stage.join(batched, batch=True)
    stage.commit(put("1", 0, 0, 0, 1), put("2", 0, 0, 0, 1), atomic=True)
    assert len(single.messages()) == 3
    (message,) = batched.messages()
    complete = message["events"][2]
    assert (complete["event_type"], complete["count"], complete["first_index_version"]) == ("batch_complete", 2, 1)
    assert complete["index_version"] == 2
    assert "document_id" not in complete


async def test_include_shows_content_and_vector_of_every_change(stage: Stage) -> None:
    stage.commit(put("1", 1, 2, 3, 4))
    pipe = Pipe()
    stage.join(pipe, since=0, vector=True, content=True)
    await stage.settled()
    stage.commit(put("1", metadata={"x": 1}))
    await stage.settled()
    assert [event["vector"] for event in pipe.events()] == [[1, 2, 3, 4], [1, 2, 3, 4]]


async def test_a_position_ahead_of_the_room_waits_for_it(stage: Stage) -> None:
    """An answer may be ahead of the room for a moment; who subscribes from its position misses nothing after it."""
    pipe = Pipe()
    stage.join(pipe, since=2)
    for i in range(4):
        stage.commit(put(f"d{i}", 1, 2, 3, 4))
    await stage.settled()
    assert positions(pipe) == [3, 4]


async def test_who_left_gets_nothing_more(stage: Stage) -> None:
    pipe, behind = Pipe(), Pipe()
    live = stage.join(pipe)
    behind.open.clear()
    stage.commit(put("a", 1, 2, 3, 4))
    slow = stage.join(behind, since=0)
    stage.room.leave(live)
    stage.room.leave(slow)
    behind.open.set()
    stage.commit(put("a", 2, 2, 3, 4))
    await asyncio.sleep(0)
    assert positions(pipe) == [1]
    assert positions(behind) == []
    assert len(stage.room) == 0


@given(data=st.data())
def test_every_replica_equals_the_store_at_rest(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    asyncio.run(_replicas(data, tmp_path_factory.mktemp("room")))


async def _replicas(data: st.DataObject, path: Path) -> None:
    """Clients join, stall, resume and filter while documents change; each then holds what the store holds."""
    collection = make(path / "things")
    stage = Stage(collection, RoomLimits(log_bytes=3000))
    clients: list[tuple[Pipe, Filter | None]] = []
    for _ in range(data.draw(st.integers(5, 25))):
        await _step(data, stage, clients)
    for pipe, _ in clients:
        pipe.open.set()
    await stage.settled()
    page = collection.changes(Span(0, 0, collection.index_version), 1000)
    for pipe, where in clients:
        live = [change.document for change in page.changes if not change.document.deleted]
        states = {document.id: (document.version, json.loads(document.metadata)) for document in live}
        assert _replica(pipe) == {i: state for i, state in states.items() if where is None or where.matches(state[1])}
        assert positions(pipe) == sorted(set(positions(pipe)))
        assert not pipe.abandoned
    collection.close()


NUMBERS = st.integers(0, 3)
WHERE = st.sampled_from([None, Filter({"x": {"$gte": 2}})])


async def _step(data: st.DataObject, stage: Stage, clients: list[tuple[Pipe, Filter | None]]) -> None:
    document_id = f"d{data.draw(NUMBERS)}"
    match data.draw(st.sampled_from(["put", "put", "delete", "join", "stall", "drain", "run"])):
        case "put":
            stage.commit(put(document_id, data.draw(NUMBERS), 0, 0, 1, metadata={"x": data.draw(NUMBERS)}))
        case "delete":
            stage.commit(Remove(document_id))
        case "join":
            clients.append((Pipe(), data.draw(WHERE)))
            stage.join(clients[-1][0], since=0, where=clients[-1][1], batch=data.draw(st.booleans()))
        case "run":
            await asyncio.sleep(0)
        case change if clients:
            pipe, _ = data.draw(st.sampled_from(clients))
            (pipe.open.clear if change == "stall" else pipe.open.set)()


def _replica(pipe: Pipe) -> dict[str, Any]:
    replica: dict[str, Any] = {}
    for event in pipe.events():
        if event["event_type"] == "delete" or event.get("left"):
            replica.pop(event["document_id"], None)
        else:
            replica[event["document_id"]] = (event["version"], event["metadata"])
    return replica


async def test_a_document_made_again_may_have_left_a_filter_meanwhile(tmp_path: Path) -> None:
    """Deleted and made again as something else, a document is new, and yet one that the subscriber may hold."""
    collection = make(tmp_path / "things")
    collection.commit([write(put("a", 1, 0, 0, 0, metadata={"x": 1})), write(put("b", 1, 0, 0, 0))])
    collection.commit([write(Remove("a"))])
    collection.commit([write(put("a", 1, 0, 0, 0, metadata={"x": 2})), write(put("c", 1, 0, 0, 0, metadata={"x": 2}))])
    page = collection.changes(Span(2, 2, 5), 10)
    events = Events(page.changes).messages_for(Variant("things", JSON, Filter({"x": 1})))
    assert [(event.document_id, event.left) for event in events] == [("a", True)]
    collection.close()


async def test_events_share_frames_of_bounded_size(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    collection.commit([write(put(f"d{i}", 1, 0, 0, i, metadata={"x": "x" * 300_000})) for i in range(10)])
    pipe = Pipe()
    changes = collection.changes(Span(0, 0, 10), 10).changes
    pipe.write(Events(changes).bytes_for(Variant("things", JSON, batch=True)))
    assert len(pipe.events()) == 10
    assert 2 <= len(pipe.messages()) <= 5
    collection.close()


async def test_caught_up_comes_when_it_goes_live_and_again_after_it_fell_behind(stage: Stage) -> None:
    stage.commit(put("a", 1, 2, 3, 4))
    pipe = Pipe()
    stage.join(pipe, since=0, caught_up=True)
    await stage.settled()
    assert [message["type"] for message in pipe.messages()] == ["reset", "index_update", "caught_up"]
    pipe.open.clear()
    stage.commit(put("a", 2, 2, 3, 4))
    stage.commit(put("a", 3, 2, 3, 4))
    pipe.open.set()
    await stage.settled()
    assert pipe.messages()[-1] == {
        "type": "caught_up",
        "collection": "things",
        "index_version": 3,
        "metric": "cosine",
    }
    assert positions(pipe) == [1, 2, 3]


async def test_who_takes_too_long_for_the_net_change_is_closed(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    stage = Stage(collection, RoomLimits(log_bytes=0, lag_s=-1.0))
    for i in range(300):
        stage.commit(put(f"d{i}", i, 0, 0, 1))
    first = Pipe()
    stage.join(first, since=0)
    await stage.settled()
    assert not first.abandoned, "what came before it joined may take any time"
    assert len(positions(first)) == 300
    first.open.clear()
    for i in range(300):
        stage.commit(put(f"d{i}", i, 1, 0, 1))
    first.open.set()
    await stage.settled()
    assert first.abandoned
    assert first.slow
    collection.close()


def test_subscribers_of_different_filters_share_what_was_encoded(stage: Stage) -> None:
    pipes = [Pipe() for _ in range(4)]
    for i, pipe in enumerate(pipes):
        stage.join(pipe, where=Filter({"x": {"$gte": i}}))
    stage.commit(*(put(f"d{i}", i, 0, 0, 1, metadata={"x": i}) for i in range(4)))
    assert [len(positions(pipe)) for pipe in pipes] == [4, 3, 2, 1]
    (entry,) = stage.room._log
    (encoded,) = entry.events._encoded.values()
    assert len(encoded) == 4, "each event once"


async def test_a_closed_room_tells_its_sinks(stage: Stage) -> None:
    pipe = Pipe()
    stage.join(pipe)
    stage.room.close()
    assert pipe.ended
    assert pipe.messages() == [{"type": "unsubscribed", "collection": "things"}]


@pytest.mark.parametrize("batch", [False, True])
async def test_a_large_commit_goes_out_in_parts(stage: Stage, batch: bool) -> None:
    """Each of many filters once had a copy of it, and each client that didn't read held on to its own."""
    offered: list[int] = []

    class Noting(Pipe):
        def offer(self, data: bytes) -> bool:
            offered.append(len(data))
            return super().offer(data)

    pipes = [Noting(), Pipe(), Pipe()]
    for i, pipe in enumerate(pipes):
        stage.join(pipe, where=Filter({"x": {"$gte": i}}), batch=batch)
    stage.commit(*(put(f"d{i}", i, 0, 0, 1, metadata={"x": i, "text": "t" * 3000}) for i in range(400)), atomic=True)
    assert not pipes[0].data, "nobody waits for anybody else's megabyte"
    await stage.settled()
    assert [len(pipe.events()) for pipe in pipes] == [401, 400, 399]
    assert pipes[0].events()[-1]["event_type"] == "batch_complete"
    assert positions(pipes[0]) == [*range(1, 401), 400]
    assert len(offered) > 3
    assert max(offered) < 400_000
    (entry,) = stage.room._log
    assert not entry.events._joined


async def test_the_beginning_has_no_deletions_and_nothing_that_does_not_fit(stage: Stage) -> None:
    for i in range(4):
        stage.commit(put(f"d{i}", i, 0, 0, 1, metadata={"x": i}))
    stage.commit(Patch("d1", {"x": 9}), Remove("d2"))
    everyone, some = Pipe(), Pipe()
    stage.join(everyone, since=0)
    stage.join(some, since=0, where=Filter({"x": {"$lt": 9}}))
    await stage.settled()
    assert [event["document_id"] for event in everyone.events()] == ["d0", "d3", "d1"]
    assert [(event["document_id"], event.get("left")) for event in some.events()] == [("d0", None), ("d3", None)]


@pytest.mark.parametrize(("writing_s", "gather_s"), [(0.0005, 0.0), (0.004, 0.008), (0.5, 0.015)])
def test_events_gather_while_writing_to_subscribers_of_batches_is_costly(
    tmp_path: Path, writing_s: float, gather_s: float
) -> None:
    collection = make(tmp_path / "things")
    stage = Stage(collection, writing_s=writing_s)
    batched = stage.join(Pipe(), batch=True)
    stage.commit(put("a", 1, 2, 3, 4))
    assert stage.room.gather_s == pytest.approx(gather_s)
    stage.join(Pipe())
    stage.commit(put("b", 1, 2, 3, 4))
    assert stage.room.gather_s == 0
    stage.room.leave(batched)
    collection.close()


def test_nothing_gathers_without_subscribers(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    stage = Stage(collection, writing_s=0.004)
    stage.commit(put("a", 1, 2, 3, 4))
    assert stage.room.gather_s == 0
    collection.close()

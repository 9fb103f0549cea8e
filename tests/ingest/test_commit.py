"""The writer of one collection, on a real collection, with an embedder that answers when the test lets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.bus.local import LocalBus
from gateway.embed.model import Batch, Usage
from gateway.embed.pipeline import Pipeline
from gateway.engine.collection import Collection
from gateway.engine.types import Applied, Change, Done, Metric, Patch, Put, Spec, Vector, Write
from gateway.errors import (
    EmbeddingUnavailable,
    HotindexError,
    InvalidArgument,
    NotFound,
    Overloaded,
    StorageUnavailable,
)
from gateway.ingest.commit import Committer
from gateway.ingest.queue import Bounds
from tests.engine.support import make, nearest, put, vector, write

SPEC = Spec("texts", 4, Metric.COSINE, "gated")


class GatedModel:
    """Embeds "1 2 3 4" as the vector of these numbers, once `gate` is open."""

    name = identity = "gated"
    dimension = 4
    available = True
    concurrency = 8
    batch = Batch(1000, 1 << 20)

    def __init__(self) -> None:
        self.usage = Usage()
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls: list[list[str]] = []
        self.error: Exception | None = None

    async def embed(self, texts: Sequence[str]) -> list[Vector | HotindexError]:
        self.calls.append(list(texts))
        await self.gate.wait()
        if self.error:
            raise self.error
        return [_numbers(text) for text in texts]

    def embed_here(self, texts: Sequence[str]) -> dict[str, Vector]:
        return {}

    async def close(self) -> None:
        pass


def _numbers(text: str) -> Vector | HotindexError:
    try:
        return vector(*map(float, text.split()))
    except ValueError:
        return InvalidArgument(f"no words in {text!r}", field="content")


class Log:
    """A listener that keeps what it is told."""

    wants_vectors = False

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.commits = 0

    def renewed(self) -> None:
        raise AssertionError("a node alone has one epoch")

    def publish(self, applied: Applied) -> None:
        self.commits += 1
        self.ids += [event.document.id for event in applied.events if isinstance(event, Change)]


class Harness:
    def __init__(self, committer: Committer, collection: Collection, model: GatedModel, log: Log) -> None:
        self.committer = committer
        self.collection = collection
        self.model = model
        self.log = log
        self.hold = asyncio.Event()
        self.hold.set()

    async def submit(self, *writes: Write) -> list[asyncio.Future[Done | HotindexError]]:
        return [await self.committer.submit(write) for write in writes]

    async def ended(self, *writes: Write) -> list[Done | HotindexError]:
        return await asyncio.gather(*await self.submit(*writes))


@asynccontextmanager
async def running(path: Path, **bounds: int) -> AsyncIterator[Harness]:
    collection = make(path / "texts", SPEC)
    model, log = GatedModel(), Log()
    pipeline = Pipeline(model)
    executor = ThreadPoolExecutor(1)

    async def before_commit() -> None:
        await harness.hold.wait()

    bus = LocalBus(collection, log, executor, before_commit)
    committer = Committer("texts", pipeline, bus, Bounds(**bounds), lambda: 0.0, lambda _: None)
    harness = Harness(committer, collection, model, log)
    committer.start()
    try:
        yield harness
    finally:
        harness.hold.set()
        model.gate.set()
        await committer.stop()
        await pipeline.close()
        executor.shutdown()
        collection.close()


def text(document_id: str, content: str, priority: int = 0) -> Write:
    return Write((Put(document_id, content=content),), priority=priority)


async def test_what_gathers_while_a_commit_runs_becomes_one(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        harness.hold.clear()
        submitted = await harness.submit(*(write(put(f"d{i}", 1, i, 0, 0)) for i in range(100)))
        harness.hold.set()
        done = await asyncio.gather(*submitted)
        assert harness.log.commits == 1
        assert [one.index_version for one in done if isinstance(one, Done)] == list(range(1, 101))


async def test_a_commit_is_bounded(tmp_path: Path) -> None:
    async with running(tmp_path, commit_documents=10) as harness:
        harness.hold.clear()
        submitted = await harness.submit(*(write(put(f"d{i}", 1, i, 0, 0)) for i in range(25)))
        harness.hold.set()
        await asyncio.gather(*submitted)
        assert harness.log.commits == 3


async def test_writers_are_told_after_the_listener_and_when_searchable(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (done,) = await harness.ended(write(put("a", 1, 2, 3, 4)))
        assert isinstance(done, Done)
        assert harness.log.ids == ["a"]
        assert nearest(harness.collection, 1, 2, 3, 4) == ["a"]


async def test_texts_of_many_writes_are_embedded_in_one_call(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        harness.hold.clear()
        submitted = await harness.submit(text("a", "1 0 0 0"), text("b", "0 1 0 0"), text("c", "1 0 0 0"))
        harness.hold.set()
        assert all(isinstance(one, Done) for one in await asyncio.gather(*submitted))
        assert harness.model.calls == [["1 0 0 0", "0 1 0 0"]]
        assert nearest(harness.collection, 0, 1, 0, 0, k=1) == ["b"]


async def test_order_per_document_holds_while_others_pass(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        harness.model.gate.clear()
        slow, patched, other = await harness.submit(
            text("a", "1 0 0 0"), Write((Patch("a", {"x": 1}),)), write(put("b", 0, 1, 0, 0))
        )
        assert isinstance(await other, Done)
        assert not slow.done()
        assert not patched.done()
        harness.model.gate.set()
        assert isinstance(await slow, Done)
        assert isinstance(await patched, Done), "the patch came after the insert it needs"
        assert harness.log.ids == ["b", "a", "a"]


async def test_critical_writes_go_first_but_not_past_their_own_document(tmp_path: Path) -> None:
    async with running(tmp_path, commit_documents=1) as harness:
        harness.hold.clear()
        submitted = await harness.submit(
            write(put("first", 1, 0, 0, 0)),
            write(put("normal", 1, 0, 0, 0)),
            Write((put("same", 1, 0, 0, 0),), priority=0),
            Write((put("high", 1, 0, 0, 0),), priority=1),
            Write((put("same", 0, 1, 0, 0),), priority=2),
            Write((put("critical", 1, 0, 0, 0),), priority=2),
        )
        harness.hold.set()
        await asyncio.gather(*submitted)
        assert harness.log.ids == ["critical", "high", "first", "normal", "same", "same"]
        assert nearest(harness.collection, 0, 1, 0, 0, k=1) == ["same"]


async def test_a_text_without_a_vector_fails_its_write_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        bad, good, after = await harness.ended(text("a", "???"), text("b", "1 0 0 0"), text("a", "0 0 0 1"))
        assert isinstance(bad, InvalidArgument)
        assert isinstance(good, Done)
        assert isinstance(after, Done)
        assert sorted(nearest(harness.collection, 1, 0, 0, 0)) == ["a", "b"]


async def test_an_embedder_that_is_away_fails_only_what_needs_it(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        harness.model.error = EmbeddingUnavailable("away")
        bad, good = await harness.ended(text("a", "1 0 0 0"), write(put("b", 1, 0, 0, 0)))
        assert isinstance(bad, EmbeddingUnavailable)
        assert isinstance(good, Done)
        harness.model.error = None
        (again,) = await harness.ended(text("a", "1 0 0 0"))
        assert isinstance(again, Done)


async def test_a_bug_in_an_embedder_is_told_as_internal(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        harness.model.error = ZeroDivisionError("oops")
        (bad,) = await harness.ended(text("a", "1 0 0 0"))
        assert isinstance(bad, HotindexError)
        assert bad.code == "internal"
        assert "oops" not in bad.message


async def test_a_full_queue_makes_submitters_wait_in_order(tmp_path: Path) -> None:
    async with running(tmp_path, queued_documents=2) as harness:
        harness.hold.clear()
        await harness.submit(write(put("a", 1, 0, 0, 0)), write(put("b", 1, 0, 0, 0)))
        waiting = [asyncio.create_task(harness.committer.submit(write(put(i, 1, 0, 0, 0)))) for i in "cde"]
        gave_up = asyncio.create_task(harness.committer.submit(write(put("never", 1, 0, 0, 0))))
        await asyncio.sleep(0)
        assert harness.committer.queued_documents == 2
        assert not any(task.done() for task in waiting)
        gave_up.cancel()
        harness.hold.set()
        for task in waiting:
            assert isinstance(await (await task), Done)
        assert harness.log.ids == ["a", "b", "c", "d", "e"]
        assert (harness.committer.queued_documents, harness.committer.queued_bytes) == (0, 0)


async def test_a_write_larger_than_the_queue_goes_alone(tmp_path: Path) -> None:
    async with running(tmp_path, queued_documents=2) as harness:
        (done,) = await harness.ended(write(*(put(f"d{i}", 1, i, 0, 0) for i in range(10))))
        assert isinstance(done, Done)


async def test_a_failing_disk_is_told_to_every_writer_and_nothing_is_half_done(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (tmp_path / "texts" / "store.db").rename(tmp_path / "texts" / "moved.db")
        harness.collection._store._connection.execute("PRAGMA query_only=1")
        first, second = await harness.ended(write(put("a", 1, 0, 0, 0)), write(put("b", 1, 0, 0, 0)))
        assert isinstance(first, StorageUnavailable)
        assert isinstance(second, StorageUnavailable)
        harness.collection._store._connection.execute("PRAGMA query_only=0")
        assert not harness.log.ids
        (done,) = await harness.ended(write(put("a", 1, 0, 0, 0)))
        assert isinstance(done, Done)


async def test_stop_finishes_what_was_submitted(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        harness.model.gate.clear()
        submitted = await harness.submit(text("a", "1 0 0 0"), write(put("b", 1, 0, 0, 0)), Write((Patch("a", {}),)))
        stopping = asyncio.create_task(harness.committer.stop())
        harness.model.gate.set()
        await stopping
        assert all(isinstance(one.result(), Done) for one in submitted)
        with pytest.raises(HotindexError, match="shutting down"):
            await harness.submit(text("c", "1 0 0 0"))


async def test_an_abandoned_write_is_still_applied(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        harness.hold.clear()
        (abandoned,) = await harness.submit(write(put("a", 1, 0, 0, 0)))
        abandoned.cancel()
        harness.hold.set()
        (missing,) = await harness.ended(Write((Patch("nobody", {}),)))
        assert isinstance(missing, NotFound)
        assert harness.log.ids == ["a"]


async def test_writes_on_one_document_share_a_call_of_the_model(tmp_path: Path) -> None:
    """Each waited for the one before it: a hundred changes of a text took a hundred times the model's latency."""
    async with running(tmp_path) as harness:
        harness.model.gate.clear()
        submitted = await harness.submit(*(text("a", f"1 {i} 0 0") for i in range(50)))
        while sum(map(len, harness.model.calls)) < 50:
            await asyncio.sleep(0.001)
        assert len(harness.model.calls) <= 3
        harness.model.gate.set()
        done = await asyncio.gather(*submitted)
        assert [one.results[0].version for one in done if isinstance(one, Done)] == list(range(1, 51))
        assert nearest(harness.collection, 1, 49, 0, 0) == ["a"]


async def test_a_slow_model_leaves_room_for_ready_vectors(tmp_path: Path) -> None:
    async with running(tmp_path, queued_documents=8) as harness:
        harness.model.gate.clear()
        slow = await harness.submit(*(text(f"t{i}", f"1 {i} 0 0") for i in range(4)))
        waiting = asyncio.create_task(harness.committer.submit(text("t4", "1 4 0 0")))
        with pytest.raises(Overloaded, match="4 documents"):
            await harness.committer.submit(text("t5", "1 5 0 0"), wait=False)
        for i in range(20):
            (done,) = await harness.ended(write(put(f"v{i}", 0, 1, 0, 0)))
            assert isinstance(done, Done)
        assert not waiting.done()
        harness.model.gate.set()
        assert all(isinstance(one, Done) for one in await asyncio.gather(*slow, await waiting))


async def test_a_text_committed_before_needs_no_call(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        await harness.ended(text("a", "1 0 0 0"))
        harness.model.error = EmbeddingUnavailable("away")
        (done,) = await harness.ended(text("b", "1 0 0 0"))
        assert isinstance(done, Done)
        assert harness.model.calls == [["1 0 0 0"]]


async def test_an_abandoned_collection_refuses_what_waits_for_vectors_at_once(tmp_path: Path) -> None:
    """A drop waited for the model, and kept all other collections of the node from being made."""
    async with running(tmp_path, queued_documents=4) as harness:
        harness.model.gate.clear()
        slow = await harness.submit(text("a", "1 0 0 0"), text("a", "1 1 0 0"))
        outside = asyncio.create_task(harness.committer.submit(text("b", "1 2 0 0")))
        while not harness.model.calls:
            await asyncio.sleep(0.001)
        await harness.committer.abandon()
        assert [type(await one) for one in slow] == [NotFound, NotFound]
        with pytest.raises(Overloaded):
            await outside
        assert harness.committer.queued_documents == 0
        harness.model.gate.set()


async def test_a_critical_text_is_let_in_before_what_waits_outside(tmp_path: Path) -> None:
    async with running(tmp_path, queued_documents=16) as harness:
        harness.model.gate.clear()
        await harness.submit(*(text(f"t{i}", f"1 {i} 0 0") for i in range(8)))
        outside = [asyncio.create_task(harness.committer.submit(text(f"o{i}", f"2 {i} 0 0"))) for i in range(5)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in outside)
        (critical,) = await harness.submit(text("critical", "0 0 0 1", priority=2))
        harness.model.gate.set()
        assert isinstance(await critical, Done)
        for task in outside:
            assert isinstance(await (await task), Done)

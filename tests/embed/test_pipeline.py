"""From single texts to batches: what goes out when, and what isn't asked for twice. Time is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from gateway.embed.model import Batch, Usage
from gateway.embed.pipeline import Bounds, Pipeline
from gateway.engine.types import Vector
from gateway.errors import EmbeddingUnavailable, HotindexError, Internal, InvalidArgument, Overloaded


class Model:
    """Holds each call until the test answers it."""

    name = identity = "held"
    dimension = 2
    available = True
    concurrency = 3

    def __init__(self, texts: int = 4, size_bytes: int = 1000) -> None:
        self.batch = Batch(texts, size_bytes)
        self.usage = Usage()
        self.calls: list[list[str]] = []
        self.held: list[asyncio.Future[None]] = []
        self.error: Exception | None = None

    async def embed(self, texts: Sequence[str]) -> list[Vector | HotindexError]:
        self.calls.append(list(texts))
        self.held.append(asyncio.get_running_loop().create_future())
        await self.held[-1]
        if self.error is not None:
            raise self.error
        return [InvalidArgument("no words") if text == "?" else vector_of(text) for text in texts]

    def embed_here(self, texts: Sequence[str]) -> dict[str, Vector]:
        return {}

    async def close(self) -> None:
        pass


def vector_of(text: str) -> Vector:
    return np.array([len(text), 1], np.float32)


@pytest.fixture
async def model() -> Model:
    return Model()


@pytest.fixture
async def pipeline(model: Model) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(model)
    yield pipeline
    answer_all(model)
    await pipeline.close()


def answer_all(model: Model) -> None:
    for held in model.held:
        if not held.done():
            held.set_result(None)


async def turns() -> None:
    """Let everything happen that doesn't wait for time or for the test."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_comes_in_one_turn_goes_out_at_once_in_one_call(model: Model, pipeline: Pipeline) -> None:
    first, second = pipeline.embed(["a", "bb"]), pipeline.embed(["ccc"])
    await turns()
    assert model.calls == [["a", "bb", "ccc"]]
    answer_all(model)
    assert [vector.tolist() for vector in await first if not isinstance(vector, HotindexError)] == [[1, 1], [2, 1]]
    assert len(await second) == 1


async def test_a_text_on_its_way_and_one_that_just_came_are_not_sent_again(model: Model, pipeline: Pipeline) -> None:
    one = pipeline.embed(["same", "same"])
    await turns()
    two = pipeline.embed(["same"])
    await turns()
    answer_all(model)
    three = pipeline.embed(["same"])
    assert [len(await asked) for asked in (one, two, three)] == [2, 1, 1]
    assert model.calls == [["same"]]
    assert (pipeline.reused.texts, pipeline.reused.size_bytes) == (3, 12)


async def test_a_second_call_waits_for_a_full_batch(model: Model, pipeline: Pipeline) -> None:
    waiting = [pipeline.embed(["first"])]
    await turns()
    waiting += [pipeline.embed([text]) for text in "abc"]
    await turns()
    assert model.calls == [["first"]], "three of four wait"
    waiting.append(pipeline.embed(["d"]))
    await turns()
    assert model.calls == [["first"], ["a", "b", "c", "d"]]
    answer_all(model)
    await asyncio.gather(*waiting)


async def test_what_waits_goes_out_when_nothing_is_on_its_way_any_more(model: Model, pipeline: Pipeline) -> None:
    first = pipeline.embed(["first"])
    await turns()
    second = pipeline.embed(["second"])
    await turns()
    answer_all(model)
    await first
    await turns()
    assert model.calls == [["first"], ["second"]]
    answer_all(model)
    await second


async def test_what_waited_long_enough_goes_out_beside_a_slow_call(model: Model, pipeline: Pipeline) -> None:
    pipeline.embed(["slow"])
    await turns()
    second = pipeline.embed(["second"])
    while len(model.calls) < 2:
        await asyncio.sleep(0.001)
    model.held[1].set_result(None)
    await second
    assert not model.held[0].done()


async def test_a_critical_text_goes_out_at_once_and_first(model: Model, pipeline: Pipeline) -> None:
    pipeline.embed(["first"])
    await turns()
    pipeline.embed(["normal", "soon"])
    pipeline.embed(["critical"], priority=2)
    pipeline.embed(["soon"], priority=2)
    await turns()
    assert model.calls == [["first"], ["critical", "soon", "normal"]]


async def test_no_more_calls_overlap_than_the_model_bears(model: Model, pipeline: Pipeline) -> None:
    pipeline.embed([f"t{i}" for i in range(30)])
    await turns()
    assert [len(call) for call in model.calls] == [4, 4, 4]
    answer_all(model)
    await turns()
    assert [len(call) for call in model.calls] == [4, 4, 4, 4, 4, 4]


async def test_a_batch_is_bounded_in_bytes_and_a_longer_text_goes_alone() -> None:
    model = Model(texts=100, size_bytes=10)
    pipeline = Pipeline(model)
    asked = pipeline.embed(["x" * 6, "y" * 6, "z" * 50])
    await turns()
    assert model.calls == [["x" * 6], ["y" * 6], ["z" * 50]]
    answer_all(model)
    await asked
    await pipeline.close()


async def test_each_text_has_its_own_outcome(model: Model, pipeline: Pipeline) -> None:
    asked = pipeline.embed(["good", "?"])
    await turns()
    answer_all(model)
    good, bad = await asked
    assert isinstance(good, np.ndarray)
    assert isinstance(bad, InvalidArgument)
    again = pipeline.embed(["?"])
    await turns()
    assert model.calls == [["good", "?"], ["?"]], "what has no vector isn't remembered"
    answer_all(model)
    await again


@pytest.mark.parametrize(
    ("error", "told"), [(EmbeddingUnavailable("away"), EmbeddingUnavailable), (ZeroDivisionError(), Internal)]
)
async def test_a_failed_call_fails_its_texts_and_no_others(
    error: Exception, told: type[HotindexError], model: Model, pipeline: Pipeline
) -> None:
    model.error = error
    asked = pipeline.embed(["a", "b"])
    await turns()
    answer_all(model)
    assert [type(outcome) for outcome in await asked] == [told, told]
    model.error = None
    again = pipeline.embed(["a"])
    await turns()
    answer_all(model)
    assert isinstance((await again)[0], np.ndarray)


async def test_texts_beyond_the_bounds_are_refused_as_retryable(model: Model) -> None:
    pipeline = Pipeline(model, Bounds(texts=2, size_bytes=100))
    asked = pipeline.embed(["a", "b", "c", "a"])
    await turns()
    answer_all(model)
    a, b, c, again = await asked
    assert isinstance(c, Overloaded)
    assert all(isinstance(outcome, np.ndarray) for outcome in (a, b, again))
    assert pipeline.waiting == 0
    await pipeline.close()


async def test_recent_vectors_are_bounded_and_the_oldest_goes_first(model: Model) -> None:
    pipeline = Pipeline(model, recent_bytes=2 * (8 + 1 + 200))
    for text in ("a", "b", "a", "c", "a", "b"):
        asked = pipeline.embed([text])
        await turns()
        answer_all(model)
        await asked
    assert model.calls == [["a"], ["b"], ["c"], ["b"]]
    await pipeline.close()


async def test_who_gives_up_leaves_the_others_alone(model: Model, pipeline: Pipeline) -> None:
    gone, stays = pipeline.embed(["a"]), pipeline.embed(["a"])
    await turns()
    gone.cancel()
    answer_all(model)
    assert len(await stays) == 1


async def test_who_stops_waits_for_a_model_only_so_long(model: Model, pipeline: Pipeline) -> None:
    asked = pipeline.embed([f"t{i}" for i in range(20)])
    await turns()
    pipeline.end_within(0.0)
    assert {type(outcome) for outcome in await asked} == {EmbeddingUnavailable}
    (late,) = await pipeline.embed(["late"])
    assert isinstance(late, EmbeddingUnavailable)


async def test_raising_texts_that_wait_passes_them_over_in_their_old_place(model: Model, pipeline: Pipeline) -> None:
    pipeline.embed(["first"])
    await turns()
    waiting = pipeline.embed([f"t{i}" for i in range(3)])
    pipeline.embed(["t2"], priority=2)
    while not waiting.done():
        await turns()
        answer_all(model)
    assert sorted(text for call in model.calls for text in call) == ["first", "t0", "t1", "t2"]
    assert model.calls[1][0] == "t2"
    assert pipeline.waiting == 0

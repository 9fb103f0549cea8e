"""The models of a node, and what they were spared."""

from __future__ import annotations

import pytest

from gateway.embed.catalog import Models, Priced
from gateway.embed.local import NAME, LocalModel
from gateway.embed.pipeline import Pipeline
from gateway.engine.plan import Kept
from gateway.engine.types import Metric, Spec
from gateway.errors import EmbeddingUnavailable, InvalidArgument


@pytest.fixture
def models() -> Models:
    return Models([Priced(Pipeline(LocalModel()), price=2.0)], NAME)


async def test_costs_come_of_tokens_and_the_price(models: Models) -> None:
    (before,) = models.states([(NAME, Kept(3, 4_000_000))])
    await models.known(NAME).embed(["x" * 4000, "a film about the sea"])
    (state,) = models.states([(NAME, Kept(3, 4_000_000)), (None, Kept(9, 9))])
    assert (state.calls, state.texts, state.tokens, state.saved_texts) == (1, 2, 1005, 3)
    assert state.saved_tokens == before.saved_tokens == 1_000_000, "what was saved isn't counted anew"
    assert (state.cost, state.saved_cost) == (1005 * 2 / 1e6, 2.0)
    models.retire(NAME, Kept(3, 4_000_000))
    assert models.states([])[0].saved_texts == 3, "a dropped collection's stay counted"
    await models.close()


async def test_a_collection_of_another_model_by_the_same_name_is_refused_and_says_why(models: Models) -> None:
    for spec, reason in (
        (Spec("c", 4, Metric.COSINE, "gone"), "isn't among this node's"),
        (Spec("c", 256, Metric.COSINE, NAME, model_identity="other@256"), "was other@256"),
    ):
        embedder = models.of(spec)
        assert embedder is not None
        (refused,) = await embedder.embed(["text"])
        assert isinstance(refused, EmbeddingUnavailable)
        assert reason in refused.message
    assert models.of(Spec("c", 4)) is None
    with pytest.raises(InvalidArgument, match=f"known are {NAME}"):
        models.known("gone")
    await models.close()

"""The models of a node: which there are, and what was asked of them, and what was spared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.embed.embedder import Embedder, Unavailable
from gateway.embed.pipeline import Pipeline
from gateway.engine.plan import Kept
from gateway.engine.types import Spec
from gateway.errors import InvalidArgument
from gateway.metrics import ModelState

BYTES_PER_TOKEN = 4
"""About, of what was never sent and so never counted. Always the same, so that sums only grow."""


@dataclass(frozen=True, slots=True)
class Priced:
    """A model's pipeline, and what a million tokens cost (0: unknown)."""

    pipeline: Pipeline
    price: float = 0.0


class Models:
    """`default` names the model of collections that a first write makes; None leaves them without one."""

    def __init__(self, models: Sequence[Priced], default: str | None) -> None:
        self._models = {one.pipeline.name: one for one in models}
        self._retired: dict[str, Kept] = {name: Kept() for name in self._models}
        self.default = None if default is None else self._models[default].pipeline

    def known(self, name: str) -> Pipeline:
        """Return a model. Raises InvalidArgument."""
        if name not in self._models:
            raise InvalidArgument(
                f"model {name!r} is not known here; known are {', '.join(self._models)}", field="model"
            )
        return self._models[name].pipeline

    def of(self, spec: Spec) -> Embedder | None:
        """Return what embeds a collection's texts; None where it has no model."""
        if spec.model is None:
            return None
        priced = self._models.get(spec.model)
        if priced is None:
            reason = (
                f"collection {spec.name!r} has model {spec.model!r}, which isn't among this node's (setting models)"
            )
        elif spec.model_identity not in (None, priced.pipeline.identity):
            reason = (
                f"collection {spec.name!r} was made when model {spec.model!r} was {spec.model_identity}; setting"
                f" models.{spec.model} says {priced.pipeline.identity}, whose vectors don't fit those:"
                " put it back and give the new model a name of its own, or drop the collection"
            )
        else:
            return priced.pipeline
        return Unavailable(spec.model, spec.dimension, reason)

    def retire(self, model: str | None, kept: Kept) -> None:
        """Go on counting what a collection spared that is no more."""
        if model in self._retired:
            self._retired[model].include(kept)

    def states(self, spared: Iterable[tuple[str | None, Kept]]) -> list[ModelState]:
        """Return the figures of all models; `spared` is what each collection spared, by model."""
        saved = {name: Kept() for name in self._models}
        for model, kept in (*spared, *self._retired.items()):
            if model in saved:
                saved[model].include(kept)
        return [_state(one, saved[name]) for name, one in self._models.items()]

    def end_within(self, seconds: float) -> None:
        """Give texts that are being embedded so much more time."""
        for one in self._models.values():
            one.pipeline.end_within(seconds)

    async def close(self) -> None:
        for one in self._models.values():
            await one.pipeline.close()


def _state(priced: Priced, kept: Kept) -> ModelState:
    pipeline = priced.pipeline
    usage = pipeline.model.usage
    saved_bytes = kept.size_bytes + pipeline.reused.size_bytes
    saved_tokens = saved_bytes // BYTES_PER_TOKEN
    return ModelState(
        name=pipeline.name,
        identity=pipeline.identity,
        dimension=pipeline.dimension,
        price=priced.price,
        available=pipeline.model.available,
        waiting=pipeline.waiting,
        calls=usage.calls,
        failed_calls=usage.failed_calls,
        texts=usage.texts,
        tokens=usage.tokens,
        cost=usage.tokens * priced.price / 1e6,
        saved_texts=kept.texts + pipeline.reused.texts,
        saved_tokens=saved_tokens,
        saved_cost=saved_tokens * priced.price / 1e6,
    )

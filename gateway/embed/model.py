"""What a model of texts is to the gateway: batches in, vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.engine.types import Vector
from gateway.errors import HotindexError


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call takes at most."""

    texts: int
    size_bytes: int


@dataclass(slots=True)
class Usage:
    """What a model was asked for since the start. Tokens are as the service counts them, where it says."""

    calls: int = 0
    failed_calls: int = 0
    texts: int = 0
    text_bytes: int = 0
    tokens: int = 0


class Model(Protocol):
    """Called on the event loop; `concurrency` calls may overlap."""

    name: str
    """What collections call it."""
    identity: str
    """Names the vectors it makes: models of one identity make the same of the same text."""
    dimension: int
    concurrency: int
    usage: Usage

    @property
    def batch(self) -> Batch:
        """What one call takes at most; it may change from call to call."""
        ...

    @property
    def available(self) -> bool:
        """Whether it is asked at all at present."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[Vector | HotindexError]:
        """Return, per text and in order, its vector float32[dimension] of unit length, or why it can have none.

        Raises EmbeddingUnavailable where the model can't be reached: another time it may.
        """
        ...

    def embed_here(self, texts: Sequence[str]) -> dict[str, Vector]:
        """Return the vectors of `texts`, as far as they can be computed right now, in the calling thread (any)."""
        ...

    async def close(self) -> None:
        """Release what the model holds; no call may be under way."""
        ...

"""What turns texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.engine.types import Vector
from gateway.errors import HotindexError


class Embedder(Protocol):
    """An embedding model. Called on the event loop; calls may overlap."""

    name: str
    dimension: int

    async def embed(self, texts: Sequence[str]) -> list[Vector | HotindexError]:
        """Return, per text and in order, its vector float32[dimension] of unit length, or why it can have none.

        Raises EmbeddingUnavailable where the model can't be reached.
        """
        ...

    async def close(self) -> None:
        """Release what the model holds; no call may be under way."""
        ...

"""What turns texts into vectors, as the rest of the gateway sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from gateway.engine.types import Vector
from gateway.errors import EmbeddingUnavailable, HotindexError


class Embedder(Protocol):
    """Called on the event loop; calls may overlap."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """Names the vectors it makes: see `gateway.embed.model.Model`."""
        ...

    @property
    def dimension(self) -> int: ...

    def embed(self, texts: Sequence[str], priority: int = 0) -> asyncio.Future[list[Vector | HotindexError]]:
        """Return, per text and in order, its vector float32[dimension] of unit length, or why it has none:
        EmbeddingUnavailable where it may have one another time.

        Texts of a higher priority go first. Who cancels the future doesn't wait any more; the texts are embedded yet.
        """
        ...

    def embed_here(self, texts: Sequence[str]) -> dict[str, Vector]:
        """Return the vectors of `texts`, as far as they can be computed right now, in the calling thread (any)."""
        ...

    async def close(self) -> None:
        """Release what is held; nothing may be under way."""
        ...


class Unavailable:
    """Stands for a model that this node can't ask, and says why."""

    def __init__(self, name: str, dimension: int, reason: str) -> None:
        self.name = self.identity = name
        self.dimension = dimension
        self._reason = reason

    def embed(self, texts: Sequence[str], priority: int = 0) -> asyncio.Future[list[Vector | HotindexError]]:  # noqa: ARG002
        refused: asyncio.Future[list[Vector | HotindexError]] = asyncio.get_running_loop().create_future()
        refused.set_result([EmbeddingUnavailable(self._reason) for _ in texts])
        return refused

    def embed_here(self, texts: Sequence[str]) -> dict[str, Vector]:  # noqa: ARG002
        return {}

    async def close(self) -> None:
        pass

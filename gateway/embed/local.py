"""The static embedding model that comes with the package: no network, no GPU, tens of microseconds per text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import as_file, files
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from gateway.embed.model import Batch, Usage
from gateway.engine.types import Vector
from gateway.errors import HotindexError, InvalidArgument

if TYPE_CHECKING:
    from model2vec import StaticModel

NAME = "static-minilm-256"
DIMENSION = 256
_BYTES_PER_TOKEN = 4
"""About; nobody pays for these tokens."""


class LocalModel:
    """model2vec's StaticModel, loaded on first use, with a thread of its own."""

    name = NAME
    identity = NAME
    dimension = DIMENSION
    concurrency = 1
    available = True
    batch = Batch(texts=256, size_bytes=256 << 10)

    def __init__(self) -> None:
        self.usage = Usage()
        self._thread = ThreadPoolExecutor(1, "embed")
        self._turn = Lock()
        """The tokenizer is not thread-safe."""
        self._model: StaticModel | None = None

    async def embed(self, texts: Sequence[str]) -> list[Vector | HotindexError]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, texts)

    def embed_here(self, texts: Sequence[str]) -> dict[str, Vector]:
        """Return the vectors of those of `texts` that have one, computed in the calling thread, which may be any; none
        while the model is busy, or isn't loaded yet.
        """
        if self._model is None or not self._turn.acquire(blocking=False):
            return {}
        try:
            outcomes = self._encode(self._model, texts)
        finally:
            self._turn.release()
        return {text: vector for text, vector in zip(texts, outcomes, strict=True) if isinstance(vector, np.ndarray)}

    async def close(self) -> None:
        self._thread.shutdown()

    def _embed(self, texts: Sequence[str]) -> list[Vector | HotindexError]:
        with self._turn:
            if self._model is None:
                self._model = _load()
            return self._encode(self._model, texts)

    def _encode(self, model: StaticModel, texts: Sequence[str]) -> list[Vector | HotindexError]:
        rows = np.ascontiguousarray(model.encode(list(texts), use_multiprocessing=False), np.float32)
        size_bytes = sum(len(text.encode()) for text in texts)
        self.usage.calls += 1
        self.usage.texts += len(texts)
        self.usage.text_bytes += size_bytes
        self.usage.tokens += size_bytes // _BYTES_PER_TOKEN
        return [row if row.any() else _no_words(text) for text, row in zip(texts, rows, strict=True)]


def _no_words(text: str) -> HotindexError:
    return InvalidArgument(f"content {text[:80]!r} has no word the model {NAME} knows", field="content")


def _load() -> StaticModel:
    from model2vec import StaticModel  # noqa: PLC0415 - imports for 0.3 s, which a gateway of ready vectors saves

    with as_file(files("gateway.embed") / "models" / NAME) as folder:
        return StaticModel.from_pretrained(folder)

"""The static embedding model that comes with the package: no network, no GPU, tens of microseconds per text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import numpy as np

from gateway.engine.types import Vector
from gateway.errors import HotindexError, InvalidArgument

if TYPE_CHECKING:
    from model2vec import StaticModel

NAME = "static-minilm-256"
DIMENSION = 256


class LocalEmbedder:
    """model2vec's StaticModel, loaded on first use, in a thread of its own (its tokenizer is not thread-safe)."""

    name = NAME
    dimension = DIMENSION

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "embed")
        self._model: StaticModel | None = None

    async def embed(self, texts: Sequence[str]) -> list[Vector | HotindexError]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, texts)

    async def close(self) -> None:
        self._thread.shutdown()

    def _embed(self, texts: Sequence[str]) -> list[Vector | HotindexError]:
        if self._model is None:
            self._model = _load()
        rows = np.ascontiguousarray(self._model.encode(list(texts), use_multiprocessing=False), np.float32)
        return [row if row.any() else _no_words(text) for text, row in zip(texts, rows, strict=True)]


def _no_words(text: str) -> HotindexError:
    return InvalidArgument(f"content {text[:80]!r} has no word the model {NAME} knows", field="content")


def _load() -> StaticModel:
    from model2vec import StaticModel  # noqa: PLC0415 - imports for 0.3 s, which a gateway of ready vectors saves

    with as_file(files("gateway.embed") / "models" / NAME) as folder:
        return StaticModel.from_pretrained(folder)

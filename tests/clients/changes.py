"""Changes of documents for state machines, each to be gathered in a transaction and noted in what the test knows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import hotindex
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

Vector: TypeAlias = npt.NDArray[np.float32]
Metadata: TypeAlias = dict[str, Any]
Documents: TypeAlias = dict[str, tuple[Vector, Metadata]]

FILTERS: list[tuple[Metadata | None, Callable[[Metadata], bool]]] = [
    (None, lambda _: True),
    ({"x": {"$gte": 2}}, lambda metadata: metadata["x"] >= 2),
    ({"y": {"$exists": True}}, lambda metadata: "y" in metadata),
]
"""Each as the gateway takes it, and as the test does."""

some_metadata = st.fixed_dictionaries({"x": st.integers(0, 3)}, optional={"y": st.just(1)})


@dataclass(frozen=True)
class Put:
    document_id: str
    vector: Vector
    metadata: Metadata

    def __call__(self, transaction: hotindex.Transaction, documents: Documents) -> None:
        transaction.upsert(self.document_id, vector=self.vector, metadata=self.metadata)
        documents[self.document_id] = (self.vector, self.metadata)


@dataclass(frozen=True)
class Patch:
    """Replaces all metadata there are; without a document it does nothing."""

    document_id: str
    metadata: Metadata

    def __call__(self, transaction: hotindex.Transaction, documents: Documents) -> None:
        if self.document_id in documents:
            transaction.patch(self.document_id, {"y": None, **self.metadata})
            documents[self.document_id] = (documents[self.document_id][0], self.metadata)


@dataclass(frozen=True)
class Delete:
    document_id: str

    def __call__(self, transaction: hotindex.Transaction, documents: Documents) -> None:
        transaction.delete(self.document_id)
        documents.pop(self.document_id, None)


Operation: TypeAlias = Put | Patch | Delete


@dataclass(frozen=True)
class Chance:
    """Draws operations on some documents, with some vectors."""

    ids: Sequence[str]
    vectors: Sequence[Vector]

    def puts(self, seed: int, count: int) -> list[Put]:
        """Return one of each of the first `count` documents."""
        rng = random.Random(seed)
        return [self._put(rng, document_id) for document_id in self.ids[:count]]

    def operations(self, seed: int, count: int) -> list[Operation]:
        rng = random.Random(seed)
        return [self._operation(rng) for _ in range(count)]

    def _operation(self, rng: random.Random) -> Operation:
        document_id = rng.choice(self.ids)
        chance = rng.random()
        if chance < 0.25:
            return Delete(document_id)
        if chance < 0.5:
            return Patch(document_id, _metadata(rng))
        return self._put(rng, document_id)

    def _put(self, rng: random.Random, document_id: str) -> Put:
        return Put(document_id, rng.choice(self.vectors), _metadata(rng))


def _metadata(rng: random.Random) -> Metadata:
    return {"x": rng.randrange(4), **({"y": 1} if rng.random() < 0.5 else {})}

"""Real ratings in order of time, and the movies with the vectors the gateway gives them by default."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from gateway.demo import data
from gateway.embed.local import LocalModel
from gateway.engine.text import build_text
from gateway.users.ranking import NEAREST, Matrix

_POSITIVE = 7


@dataclass(frozen=True, slots=True)
class Rating:
    """`item` is its row in the catalogue; `at` is in microseconds since the epoch."""

    user: str
    item: int
    value: int
    at: int

    @property
    def positive(self) -> bool:
        return self.value >= _POSITIVE


@dataclass(slots=True)
class Catalogue:
    """All movies; `vectors` has rows of unit length."""

    ids: list[str]
    vectors: Matrix
    rows: dict[str, int] = field(init=False)
    _nearest: dict[bytes, npt.NDArray[np.intp]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = {item_id: row for row, item_id in enumerate(self.ids)}

    @classmethod
    def load(cls) -> Catalogue:
        """Embed all movies as `hotindex serve` does: name, category and tags, by the local model."""
        movies = data.movies()
        texts = [build_text(dict(movie.metadata or {})) for movie in movies]
        return cls([movie.id for movie in movies], asyncio.run(_embed(texts)))

    def nearest(self, vector: Matrix) -> npt.NDArray[np.intp]:
        """Return the rows of the nearest movies, exactly, nearest first."""
        key = vector.tobytes()
        if key not in self._nearest:
            scores = self.vectors @ vector
            found = np.argpartition(-scores, NEAREST)[:NEAREST]
            self._nearest[key] = found[np.argsort(-scores[found], kind="stable")]
        return self._nearest[key]


def ratings(catalogue: Catalogue) -> list[Rating]:
    """Return the 8,000 ratings, oldest first."""
    with (files("gateway.demo") / "data" / "ratings.jsonl.gz").open("rb") as file, gzip.open(file) as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Rating(row["user_id"], catalogue.rows[row["item_id"]], row["rating"], row["timestamp"] * 1_000_000)
        for row in rows
    ]


async def _embed(texts: list[str]) -> Matrix:
    model = LocalModel()
    outcomes = await model.embed(texts)
    await model.close()
    return np.stack([vector for vector in outcomes if isinstance(vector, np.ndarray)])

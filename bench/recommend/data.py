"""Real ratings in order of time, and the movies with the vectors the gateway gives them by default."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from gateway.demo import data
from gateway.embed.local import LocalModel
from gateway.engine.text import build_text
from gateway.users.actions import VOCABULARY
from gateway.users.profile import Interaction
from gateway.users.ranking import Candidates, Matrix

_POSITIVE = 7
_NEAREST = 100


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
    """All movies; `vectors` has rows of unit length, `years` what each is from (nan where that isn't known)."""

    ids: list[str]
    vectors: Matrix
    years: Matrix
    rows: dict[str, int] = field(init=False)
    _nearest: dict[bytes, npt.NDArray[np.intp]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = {item_id: row for row, item_id in enumerate(self.ids)}

    @classmethod
    def load(cls) -> Catalogue:
        """Embed all movies as `hotindex serve` does: name, category and tags, by the local model."""
        movies = data.movies()
        described = [dict(movie.metadata or {}) for movie in movies]
        vectors = asyncio.run(_embed([build_text(one) for one in described]))
        years = np.array([one.get("year", np.nan) for one in described], np.float32)
        return cls([movie.id for movie in movies], vectors, years)

    def candidates(self, rows: Collection[int], seen: Collection[str]) -> Candidates:
        """Return those of `rows` that weren't seen."""
        left = sorted(row for row in rows if self.ids[row] not in seen)
        return Candidates([self.ids[row] for row in left], self.vectors[left], self.years[left])

    def event(self, rating: Rating, at: int | None = None) -> Interaction:
        """Return the interaction that a rating is; `at` is when, if not when it was."""
        row = rating.item
        year = None if np.isnan(self.years[row]) else float(self.years[row])
        weight = VOCABULARY.weigh("rate", rating.value).weight
        return Interaction(self.ids[row], weight, at or rating.at, self.vectors[row], year=year)

    def nearest(self, vector: Matrix) -> npt.NDArray[np.intp]:
        """Return the rows of the 100 nearest movies, exactly, nearest first."""
        key = vector.tobytes()
        if key not in self._nearest:
            scores = self.vectors @ vector
            found = np.argpartition(-scores, _NEAREST)[:_NEAREST]
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

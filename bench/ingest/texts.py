"""Real texts, all different, and ready vectors that are as real."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bench.engine import data
from gateway.demo.data import movies

DIMENSION = 256
_FIELDS = ("name", "category", "tags")
Fields = dict[str, object]


class Texts:
    """An endless supply of texts of which no two are equal, in an order that follows from the seed.

    A text is that of one movie, or of `joined` movies; once all movies are used up, one more is joined to each.
    """

    def __init__(self, seed: int, joined: int = 1) -> None:
        catalogue = {text_of(one.metadata): one.metadata for one in movies() if one.metadata is not None}
        order = np.random.default_rng(seed).permutation(len(catalogue))
        texts, fields = list(catalogue), list(catalogue.values())
        self._texts = [texts[i] for i in order]
        self._fields = [{name: fields[i][name] for name in _FIELDS if name in fields[i]} for i in order]
        self._joined = joined
        self._taken = 0

    @property
    def movies(self) -> int:
        """How many texts there are before any is joined to another."""
        return len(self._texts)

    def take(self, count: int) -> list[str]:
        """Return the next texts."""
        first, self._taken = self._taken, self._taken + count
        return [self._at(number) for number in range(first, first + count)]

    def fields(self, count: int) -> list[Fields]:
        """Return the text fields of the next movies, of which the gateway makes the text itself."""
        first, self._taken = self._taken, self._taken + count
        assert self._taken <= self.movies, "fields are not joined"
        return self._fields[first : self._taken]

    def _at(self, number: int) -> str:
        lap, first = divmod(number, self.movies)
        size = self._joined + (1 if lap else 0)
        return " / ".join(self._texts[(first + i * (lap + 1)) % self.movies] for i in range(size))


def text_of(fields: Mapping[str, object]) -> str:
    """Return the text that a gateway makes of text fields."""
    tags = fields.get("tags")
    parts = (fields.get("name"), fields.get("category"), ", ".join(tags) if isinstance(tags, list) else tags)
    return " | ".join(str(part) for part in parts if part)


def ready_vectors() -> npt.NDArray[np.float32]:
    """Return the first 256 dimensions of real embeddings of the movies, of unit length."""
    return data.unit(data.movies()[:, :DIMENSION])

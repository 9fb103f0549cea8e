"""The catalogue and the ratings that come with the package."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from hotindex import Document

QUERIES = ("space adventure", "romantic comedy in Paris", "zombie horror", "samurai", "a heist gone wrong")
WATCHED = QUERIES[0]
USER = "user:3808"
"""Who rated most of all, 109 movies."""


def movies() -> list[Document]:
    """Return the 31,245 movies; their vectors are made from name, category and tags by the gateway."""
    return [Document(row.pop("id"), metadata=row) for row in _rows("movies")]


def ratings() -> Iterator[tuple[str, str, int]]:
    """Yield the 8,000 ratings in order of time, as user id, movie id and rating (0..10)."""
    for row in _rows("ratings"):
        yield row["user_id"], row["item_id"], row["rating"]


def _rows(name: str) -> Iterator[dict[str, Any]]:
    with (files("gateway.demo") / "data" / f"{name}.jsonl.gz").open("rb") as file, gzip.open(file) as lines:
        for line in lines:
            yield json.loads(line)

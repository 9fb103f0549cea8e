"""What is recommended while the collection changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.engine.collection import Collection
from gateway.engine.filter import Filter
from gateway.engine.types import Document, Metric, Patch, Source, Spec
from gateway.node.items import Items
from gateway.node.neighbours import Neighbours
from gateway.node.recommending import ASKED, EF, Ask, Recommended, Recommending
from gateway.users import stored
from gateway.users.popularity import Popularity
from gateway.users.profile import MEMORY
from gateway.users.stored import NOBODY
from tests.engine.support import commit, make, put
from tests.users.support import DAY, liked

SHOWN = Filter({"shown": True})


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    made = make(tmp_path / "items", Spec("items", 4, Metric.COSINE))
    yield made
    made.close()


def ann(_: str) -> Document:
    metadata = stored.encode(stored.learned(NOBODY, liked("bought", DAY), MEMORY))
    return Document("ann", 1, 1, 1, 1, Source.VECTOR, 0, metadata, None)


def recommended(items: Items) -> Recommended:
    neighbours = Neighbours(items.collection, ASKED, EF)
    (found,) = Recommending(items, neighbours, ann, Popularity(), MEMORY, DAY).recommend([Ask("ann", 10, SHOWN)])
    assert isinstance(found, Recommended), found
    return found


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_a_filter_judges_what_is_shown(collection: Collection, before: bool, after: bool) -> None:
    items = Items(collection)
    commit(
        collection, put("a", 1, 0, 0, 0, metadata={"shown": True}), put("b", 1, 0.1, 0, 0, metadata={"shown": before})
    )
    assert len(items.by_id(["a", "b"])) == 2, "at hand"
    # The index has it before what is at hand is told.
    done = commit(collection, Patch("b", {"shown": after}))
    found = recommended(items)
    assert found.index_version == done.index_version
    shown = ["a", "b"] if after else ["a"]
    assert {hit.document.id: hit.document.metadata for hit in found.hits} == dict.fromkeys(shown, '{"shown":true}')

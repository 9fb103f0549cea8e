"""What is stored of a user comes back, and what is damaged is told."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.types import Document, Source
from gateway.errors import StorageUnavailable
from gateway.users import stored
from gateway.users.profile import MEMORY, Interaction, Profile
from gateway.users.stored import NOBODY, TOUCHED_MAX, Known
from tests.users.support import DAY, axis, interactions, liked


def document(metadata: str) -> Document:
    return Document("ann", 1, 1, 1, 1, Source.VECTOR, 0, metadata, None)


def known(events: list[Interaction]) -> Known:
    found = NOBODY
    for event in events:
        found = stored.learned(found, event, MEMORY)
    return found


@given(st.lists(interactions, max_size=12))
def test_what_is_stored_comes_back(events: list[Interaction]) -> None:
    before = known(events)
    metadata = stored.encode(before)
    after = stored.decode(document(metadata))
    assert after.touched == before.touched == stored.touched(document(metadata))
    assert stored.encode(after) == metadata


def test_the_latest_touches_are_kept() -> None:
    found = known([liked(f"i{n}", n * DAY) for n in range(TOUCHED_MAX + 5)])
    assert [one.item_id for one in found.touched] == [f"i{n}" for n in reversed(range(5, TOUCHED_MAX + 5))]


def test_a_vector_from_elsewhere_is_nothing_the_user_did() -> None:
    done = known([liked("a", DAY), liked("b", 2 * DAY)])
    last = stored.last_touched(document(stored.encode(done)))
    assert last is not None
    assert last.item_id == "b"
    placed = document(stored.encode(stored.placed(done, axis(1), 3 * DAY)))
    assert stored.last_touched(placed) is None
    assert stored.touched(placed) == done.touched
    again = document(stored.encode(stored.learned(stored.decode(placed), liked("a", 4 * DAY), MEMORY)))
    assert stored.last_touched(again) == stored.touched(again)[0]
    assert stored.last_touched(document(stored.encode(NOBODY))) is None


def test_what_is_damaged_or_of_another_format_is_told() -> None:
    metadata = stored.encode(known([liked("a", DAY)]))
    with pytest.raises(StorageUnavailable, match="'ann' can't be read"):
        stored.decode(document(metadata[:-1]))
    other = msgspec.json.encode(Known(Profile(format=1))).decode()
    with pytest.raises(StorageUnavailable, match="format 1; this version reads 2"):
        stored.decode(document(other))

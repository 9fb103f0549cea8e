"""What is stored of a user comes back, and what is damaged is told."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.types import Document, Source, State
from gateway.errors import StorageUnavailable
from gateway.users import stored
from gateway.users.profile import MEMORY, Interaction, Profile
from gateway.users.stored import NOBODY, TOUCHED_MAX, Known
from tests.users.support import DAY, axis, interactions, liked

DIMENSION = len(axis(0))


def document(state: State) -> Document:
    return Document("ann", 1, 1, 1, 1, Source.VECTOR, 0, state.metadata, None)


def known(events: list[Interaction]) -> Known:
    found = NOBODY
    for event in events:
        found = stored.learned(found, event, MEMORY)
    return found


@given(st.lists(interactions, max_size=12))
def test_what_is_stored_comes_back(events: list[Interaction]) -> None:
    before = known(events)
    state = stored.encode(before, DIMENSION)
    after = stored.decode(document(state), state.vector)
    assert after.touched == before.touched == stored.touched(document(state))
    again = stored.encode(after, DIMENSION)
    assert again.metadata == state.metadata
    # A sum of zeros may have lost its signs.
    assert np.array_equal(np.frombuffer(again.vector, np.float32), np.frombuffer(state.vector, np.float32))


def test_the_latest_touches_are_kept() -> None:
    found = known([liked(f"i{n}", n * DAY) for n in range(TOUCHED_MAX + 5)])
    assert [one.item_id for one in found.touched] == [f"i{n}" for n in reversed(range(5, TOUCHED_MAX + 5))]


def test_what_is_damaged_or_of_another_format_is_told() -> None:
    state = stored.encode(known([liked("a", DAY)]), DIMENSION)
    with pytest.raises(StorageUnavailable, match="'ann' can't be read"):
        stored.decode(document(State(state.metadata[:-1], state.vector)), state.vector)
    other = msgspec.json.encode(Known(Profile(format=2))).decode()
    with pytest.raises(StorageUnavailable, match="format 2; this version reads 1"):
        stored.decode(document(State(other, state.vector)), state.vector)

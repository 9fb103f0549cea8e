"""What actions say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidArgument
from gateway.users.actions import ACTIONS, VOCABULARY, Action, Scale, Vocabulary, vocabulary


def test_more_commitment_weighs_more() -> None:
    weights = [
        VOCABULARY.weigh(name).weight
        for name in ("purchase", "like", "add_to_cart", "click", "view", "skip", "dislike")
    ]
    assert weights == sorted(weights, reverse=True)
    assert weights[-3] > 0 > weights[-2]


@pytest.mark.parametrize(("value", "weight"), [(0, -1), (2.75, -0.5), (5.5, 0), (7.75, 0.5), (10, 1)])
def test_a_rating_weighs_what_its_value_is_from_neutral(value: float, weight: float) -> None:
    assert VOCABULARY.weigh("rate", value) == Action(weight)


@given(st.floats(1, 5))
def test_a_scale_of_another_kind_has_the_same_ends(value: float) -> None:
    stars = Scale(low=1, neutral=3, high=5)
    assert Vocabulary(scale=stars).weigh("rate", value).weight == pytest.approx((value - 3) / 2)


@pytest.mark.parametrize("value", [-0.1, 10.1, math.nan, math.inf])
def test_a_rating_off_the_scale_is_refused_with_its_value(value: float) -> None:
    with pytest.raises(InvalidArgument, match=f"value is {value}; a rating is from 0 to 10") as caught:
        VOCABULARY.weigh("rate", value)
    assert caught.value.field == "value"


def test_a_rating_without_a_value_says_no_more_than_a_click() -> None:
    assert VOCABULARY.weigh("rate") == ACTIONS["click"]


def test_weights_can_be_others_and_actions_new() -> None:
    own = vocabulary({"view": 0.5, "listen": 0.7}, Scale())
    assert own.weigh("view") == Action(0.5)
    assert own.weigh("listen") == Action(0.7)
    assert own.weigh("click") == ACTIONS["click"]


@pytest.mark.parametrize(("name", "weight"), [("view", 1.1), ("view", math.nan), ("rate", 0.5)])
def test_weights_out_of_range_are_refused_with_name_and_value(name: str, weight: float) -> None:
    with pytest.raises(ValueError, match=f"{name!r}"):
        vocabulary({name: weight}, Scale())


def test_an_unknown_action_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidArgument, match="event_type 'buy' is unknown; known are ") as caught:
        VOCABULARY.weigh("buy", named_by="event_type")
    assert caught.value.field == "event_type"
    assert all(name in caught.value.message for name in (*ACTIONS, "rate"))


def test_a_search_makes_nothing_seen() -> None:
    assert [name for name, action in ACTIONS.items() if not action.seen] == ["search"]

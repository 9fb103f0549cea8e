"""What an action of a user says about an item: how much it speaks for or against it, and whether the item is seen then.

Only the weight of ratings could be chosen by measurement (`hotindex bench recommend`); the others follow the order of
commitment: a purchase says more than a click, a click more than a view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway.errors import InvalidArgument
from gateway.protocol.checks import show

RATE = "rate"
_UNRATED = "click"


@dataclass(frozen=True, slots=True)
class Action:
    """`weight` is from -1 to 1; below 0 pulls away. What is `seen` is recommended no more."""

    weight: float
    seen: bool = True


@dataclass(frozen=True, slots=True)
class Scale:
    """Of ratings: `low` weighs -1, `neutral` nothing, `high` 1, and linearly between them."""

    low: float = 0.0
    neutral: float = 5.5
    high: float = 10.0

    def weight(self, value: float) -> float:
        """Raises InvalidArgument where `value` is not on the scale."""
        if not self.low <= value <= self.high:
            raise InvalidArgument(
                f"value is {show(value)}; a rating is from {self.low:g} to {self.high:g}", field="value"
            )
        side = self.high - self.neutral if value >= self.neutral else self.neutral - self.low
        return (value - self.neutral) / side


ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "purchase": Action(1.0),
        "like": Action(0.8),
        "favorite": Action(0.8),
        "add_to_cart": Action(0.6),
        "share": Action(0.6),
        "click": Action(0.3),
        "search": Action(0.2, seen=False),
        "view": Action(0.1),
        "skip": Action(-0.2),
        "remove_from_cart": Action(-0.3),
        "return": Action(-0.6),
        "hide": Action(-0.8),
        "dislike": Action(-0.8),
    }
)
"""All but ratings, whose weight is their value's."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The actions that are known, and the scale of ratings."""

    actions: Mapping[str, Action] = field(default_factory=lambda: ACTIONS)
    scale: Scale = Scale()

    def weigh(self, name: str, value: float | None = None, *, named_by: str = "action") -> Action:
        """Return what the action called `name` says; `value` is a rating's, and ignored for others.

        A rating without a value says no more than a click. `named_by` is the message's field that holds the name. Raises
        InvalidArgument for an unknown action, and for a value that isn't on the scale.
        """
        if name == RATE and value is not None:
            return Action(self.scale.weight(value))
        try:
            return self.actions[_UNRATED if name == RATE else name]
        except KeyError:
            known = ", ".join(sorted([*self.actions, RATE]))
            raise InvalidArgument(f"{named_by} {show(name)} is unknown; known are {known}", field=named_by) from None


VOCABULARY = Vocabulary()


def vocabulary(weights: Mapping[str, float], scale: Scale) -> Vocabulary:
    """Return the vocabulary in which some actions have other weights, or are new. Raises ValueError."""
    actions = dict(ACTIONS)
    for name, weight in weights.items():
        if not -1 <= weight <= 1:
            raise ValueError(f"the weight of {name!r} is {weight}; it must be from -1 to 1")
        if name == RATE:
            raise ValueError(f"the weight of {RATE!r} is that of its value")
        actions[name] = Action(weight, actions[name].seen if name in actions else True)
    return Vocabulary(MappingProxyType(actions), scale)

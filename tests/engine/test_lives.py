"""Which positions still stand for what they stood for, after nodes lost the order and agreed on another."""

from __future__ import annotations

import pytest

from gateway.engine import lives

CERTAIN, PARTED, LATER = (2, 0), (5, 100), (9, 150)


def test_the_epoch_changes_only_where_something_may_have_been_given_up() -> None:
    assert lives.epoch("e", ()) == "e"
    assert lives.epoch("e", (CERTAIN,)) == "e"
    assert lives.epoch("e", (CERTAIN, (4, 80))) == "e"
    assert lives.epoch("e", (CERTAIN, PARTED)) == "e.5"
    assert lives.epoch("e", (CERTAIN, PARTED, (6, 120))) == "e.5"
    assert lives.epoch("e", (CERTAIN, PARTED, LATER)) == "e.9"
    assert lives.life("e.9") == lives.life("e") == "e"


@pytest.mark.parametrize(
    ("told", "since", "holds"),
    [
        ("e", 100, True),
        ("e", 101, False),
        ("e.5", 101, True),
        ("e.5", 150, True),
        ("e.5", 151, False),
        ("e.9", 500, True),
        ("f", 0, False),
        ("e.", 100, True),
        ("e.x", 0, False),
        ("e.-5", 0, False),
        ("", 0, False),
    ],
)
def test_a_position_holds_up_to_where_a_later_term_began(told: str, since: int, holds: bool) -> None:
    assert lives.holds(told, since, "e", (CERTAIN, PARTED, (6, 120), LATER)) is holds

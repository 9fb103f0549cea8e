"""What searches found is taken in among the commits it was found between."""

from __future__ import annotations

import pytest

from gateway.live.shelf import Shelf
from gateway.live.standing import Standing
from gateway.node import watches
from gateway.node.watches import Found
from tests.live.support import DIMENSION, World, put, watch

WATCHES = 20
COMMITS = 50


async def test_what_was_found_between_commits_is_given_none_of_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    again = 0
    apply = Shelf.apply

    def counted(self: Shelf, *args: object) -> object:
        nonlocal again
        again += len(args) > 3  # of one watch alone
        return apply(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Shelf, "apply", counted)
    world = World()
    standing = Standing(DIMENSION, world.spec.metric, 0)
    lives = [watches.trace("w", watch(1, 0.01 * n, 0, 0), lambda: None) for n in range(WATCHES)]
    commits, found = [], []
    for n in range(COMMITS):
        applied = world.commit(put(f"d{n % 7}", 1, 0.1 * n, 0.2, 0))
        assert applied is not None
        commits.append(applied)
        if n % 10 == 5:  # each of them is searched for several times meanwhile, by one query or another
            for live in lives:
                live.ticket += 1
                live.watch = watch(1, -0.05 * n, 0, 0)
                found.append(Found(live, live.ticket, live.watch, 0, world.search(live.watch)))
    late = found.pop(0)
    turn = watches.apply(standing, commits, [*found, late])
    assert again <= COMMITS, "but for one that comes after a newer one of the same watch"
    assert not turn.early
    assert not turn.late
    for live in lives[1:]:
        assert live.number is not None
        assert live.asked is live.watch, "what was found last counts"
        assert [one.id for one in standing.shown(live.number)] == [one for one, _, _ in world.top(live.watch)]
    first = lives[0]
    assert first.asked is late.watch, "those of one watch stay in their order"
    assert first.number is not None
    assert [one.id for one in standing.shown(first.number)] == [one for one, _, _ in world.top(late.watch)]

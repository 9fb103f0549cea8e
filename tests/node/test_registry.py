"""Who is there, as nodes tell each other through Redis."""

from __future__ import annotations

import msgspec

from gateway.node.registry import Heartbeat, Holding, Neighbours, listing


def said(origin: str, index_version: int = 0, http: str = "", hosts: list[str] | None = None) -> Heartbeat:
    return Heartbeat(origin, origin, "", http or origin, {"m": Holding("e", 1, index_version, 0)}, hosts)


def reply(*heard: tuple[int, Heartbeat]) -> list[bytes]:
    return [part for age, one in heard for part in (one.origin.encode(), str(age).encode(), msgspec.json.encode(one))]


def alive(neighbours: Neighbours, now_s: float) -> list[str]:
    return sorted(one.origin for one in neighbours.alive(now_s))


def test_who_was_not_heard_of_for_long_is_not_counted() -> None:
    neighbours = Neighbours(10.0)
    neighbours.update(reply((0, said("a")), (9_500, said("b"))), 100.0)
    assert alive(neighbours, 100.0) == ["a", "b"]
    neighbours.update(reply((0, said("a")), (10_500, said("b"))), 101.0)
    assert alive(neighbours, 101.0) == ["a"]


def test_who_redis_has_forgotten_still_counts_for_a_while() -> None:
    neighbours = Neighbours(10.0)
    neighbours.update(reply((0, said("a")), (0, said("b"))), 100.0)
    neighbours.update(reply((0, said("a"))), 101.0)
    assert alive(neighbours, 102.0) == ["a", "b"]


def test_time_stands_still_while_redis_is_away() -> None:
    neighbours = Neighbours(10.0)
    neighbours.update(reply((0, said("a")), (0, said("b"))), 100.0)
    assert alive(neighbours, 500.0) == ["a", "b"]
    neighbours.update(reply((0, said("a"))), 500.0)
    assert alive(neighbours, 500.0) == ["a", "b"]
    for second in range(501, 515):
        neighbours.update(reply((0, said("a"))), float(second))
    assert alive(neighbours, 514.0) == ["a"]


def test_a_node_that_has_started_again_takes_its_own_place() -> None:
    neighbours = Neighbours(10.0)
    neighbours.update(reply((1_000, said("a1", http="h"))), 100.0)
    neighbours.update(reply((2_000, said("a1", http="h")), (0, said("a2", http="h"))), 101.0)
    assert alive(neighbours, 101.0) == ["a2"]


def test_a_node_that_has_left_is_forgotten_at_once() -> None:
    neighbours = Neighbours(10.0)
    neighbours.update(reply((0, said("a")), (0, said("b"))), 100.0)
    neighbours.forget("b")
    assert alive(neighbours, 100.0) == ["a"]


def test_lag_is_counted_from_the_furthest() -> None:
    states = listing([(0.0, said("a", 7)), (0.5, said("b", 10))])
    assert [(state.name, state.lag) for state in states] == [("a", {"m": 3}), ("b", {"m": 0})]


def test_a_node_hosts_all_or_what_it_names() -> None:
    assert said("a").serves("anything")
    assert not said("a", hosts=["n"]).serves("o")
    assert said("a", hosts=["n"]).serves("n")

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gateway.engine import vectors
from gateway.engine.filter import Filter
from gateway.engine.types import Applied, Metric, Operation
from gateway.live import told
from gateway.live.standing import MAX_K, Standing, wanted
from gateway.live.types import Affected, Difference, Nearest, Watch
from tests.live.support import DIMENSION, Client, World, net, patch, put, remove, take_difference, watch

RED = Filter({"color": "red"})
X = (1.0, 0.0, 0.0, 0.0)


class Pair:
    """A collection and its standing queries, up to date with each other."""

    def __init__(self, metric: Metric = Metric.IP, log_bytes: int = 1 << 20) -> None:
        self.world = World(metric)
        self.standing = Standing(DIMENSION, metric, 0, log_bytes)

    def commit(self, *operations: Operation, with_vectors: bool = True) -> Affected:
        applied = self.world.commit(*operations, with_vectors=with_vectors)
        assert applied is not None, "it changes something"
        return self.standing.apply(applied)

    def line(self, count: int) -> None:
        """Write documents d001, d002, … that score 1, 2, … for the query X."""
        self.commit(*(put(f"d{score:03}", score, 0, 0, 0) for score in range(1, count + 1)))

    def add(self, one: Watch) -> int:
        return self.standing.add(one, self.world.search(one))

    def refill(self, number: int, one: Watch) -> None:
        self.standing.refill(number, self.world.search(one))

    def shown(self, number: int) -> list[str]:
        return [ranked.document.id for ranked in self.standing.answer(number)]


@pytest.fixture
def pair() -> Pair:
    return Pair()


def ids(difference: Difference) -> tuple[list[str], list[str], list[str]]:
    added, changed = ([one.document.id for one in some] for some in (difference.added, difference.changed))
    return added, changed, list(difference.removed)


def test_what_comes_nearer_pushes_out_what_was_last(pair: Pair) -> None:
    pair.line(3)
    number = pair.add(watch(*X, k=2))
    assert pair.shown(number) == ["d003", "d002"]
    assert pair.commit(put("new", 2.5, 0, 0, 0)) == Affected([number], [])
    assert take_difference(pair.standing, number) == Difference([pair.standing.answer(number)[1]], [], ["d002"])


def test_who_is_not_concerned_is_not_named(pair: Pair) -> None:
    pair.line(5)
    pair.add(watch(*X, k=2))
    assert pair.commit(put("new", 1.5, 0, 0, 0)) == Affected([], [])
    assert pair.commit(patch("d001", color="red")) == Affected([], [])


def test_metadata_that_is_shown_is_a_change(pair: Pair) -> None:
    pair.line(5)
    number = pair.add(watch(*X, k=2))
    pair.shown(number)
    assert pair.commit(patch("d005", color="red")).changed == [number]
    difference = take_difference(pair.standing, number)
    assert ids(difference) == ([], ["d005"], [])
    assert difference.changed[0].document.metadata == '{"color":"red"}'


def test_a_storm_that_ends_where_it_began_tells_nothing_but_versions(pair: Pair) -> None:
    pair.line(5)
    number = pair.add(watch(*X, k=2))
    pair.shown(number)
    pair.commit(put("new", 9, 0, 0, 0))
    pair.commit(remove("new"))
    assert not take_difference(pair.standing, number)


def test_what_was_not_told_is_still_a_difference(pair: Pair) -> None:
    pair.line(5)
    number = pair.add(watch(*X, k=2))
    pair.shown(number)
    pair.commit(put("new", 9, 0, 0, 0))
    found = pair.standing.differences([number])
    assert pair.standing.differences([number]) == found
    pair.commit(put("newer", 10, 0, 0, 0))
    found = pair.standing.differences([number])
    assert ids(found[number]) == (["newer", "new"], [], ["d005", "d004"])
    pair.standing.tell([number])
    assert pair.standing.differences([number]) == {}


@pytest.mark.parametrize("cells", [1, 50, 1 << 18])
def test_differences_of_many_are_those_of_each(pair: Pair, monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(told, "_CELLS", cells)
    pair.line(60)
    watches = [watch(*X, k=k) for k in (1, 2, 3, 5, 6, 10, 2, 20)]
    watches += [watch(*X, k=2, excluded=["new"]), watch(0, 1, 0, 0, k=2), replace(watch(*X, k=3), where=RED)]
    numbers = [pair.add(one) for one in watches]
    clients = {}
    for number in numbers:
        answer = pair.standing.answer(number)
        clients[number] = Client({one.document.id: (one.score, one.document) for one in answer})
    pair.commit(
        put("new", 58.5, 0, 0, 0),
        put("d059", 60.5, 0, 0, 0),
        patch("d058", color="red"),
        remove("d056"),
        put("d010", 57.5, 0, 0, 0, metadata={"color": "red"}),
    )
    found = pair.standing.differences(numbers)
    for number, difference in found.items():
        clients[number].apply(difference)
    for number, one in zip(numbers, watches, strict=True):
        assert clients[number].top() == pair.world.top(one)
    assert numbers[9] not in found, "what stays below its floor is no difference"
    assert ids(found[numbers[1]]) == ([], ["d059"], [])
    assert ids(found[numbers[3]]) == (["new", "d010"], ["d059", "d058"], ["d057", "d056"])
    assert [one.rank for one in found[numbers[3]].changed] == [1, 4]


def test_beyond_k_nothing_is_told_though_the_shelf_has_room(pair: Pair) -> None:
    pair.line(9)
    number = pair.add(watch(*X, k=3))
    pair.shown(number)
    pair.commit(patch("d006", color="red"), put("low", 6.5, 0, 0, 0), remove("d005"))
    assert pair.standing.differences([number]) == {}
    pair.commit(remove("d008"))
    assert ids(pair.standing.differences([number])[number]) == (["low"], [], ["d008"])


def test_who_waits_is_left_out_of_the_differences_of_many(pair: Pair) -> None:
    pair.line(40)
    short, other = pair.add(watch(*X, k=5)), pair.add(watch(-1, 0, 0, 0, k=5))
    for number in (short, other):
        pair.shown(number)
    pair.commit(*(remove(f"d{score:03}") for score in range(40, 28, -1)), patch("d001", color="red"))
    assert pair.standing.waits(short)
    assert list(pair.standing.differences([short, other])) == [other]


def test_versions_are_known_of_any_number_of_documents(pair: Pair) -> None:
    pair.line(40)
    numbers = [pair.add(watch(*X, k=2)) for _ in range(2)]
    for start in range(0, 12_000, 2000):
        pair.commit(*(put(f"e{one:05}", 100 + one, 0, 0, 0) for one in range(start, start + 2000)))
    pair.standing.tell(numbers)
    pair.commit(patch("e11999", color="red"))
    for number in numbers:
        assert ids(pair.standing.differences(numbers)[number]) == ([], ["e11999"], [])


def test_a_document_made_again_between_two_differences_has_changed(pair: Pair) -> None:
    pair.line(5)
    number = pair.add(watch(*X, k=2))
    pair.shown(number)
    pair.commit(remove("d005"))
    pair.commit(put("d005", 5, 0, 0, 0))
    assert ids(take_difference(pair.standing, number)) == ([], ["d005"], [])


def test_deletions_are_covered_by_the_buffer_until_it_is_short(pair: Pair) -> None:
    pair.line(40)
    one = watch(*X, k=5)
    number = pair.add(one)
    pair.shown(number)
    assert wanted(5) == 16
    for score in range(40, 29, -1):
        assert pair.commit(remove(f"d{score:03}")) == Affected([number], [])
    # Four of the sixteen are left.
    assert pair.commit(remove("d029")) == Affected([], [number])
    assert pair.standing.waits(number)
    assert pair.commit(remove("d028")) == Affected([], []), "who is short is named once"
    assert not take_difference(pair.standing, number), "what isn't known isn't told"
    pair.refill(number, one)
    assert not pair.standing.waits(number)
    assert ids(take_difference(pair.standing, number))[0] == ["d027", "d026", "d025", "d024", "d023"]


def test_who_holds_all_that_fits_is_never_short(pair: Pair) -> None:
    pair.line(10)
    number = pair.add(watch(*X, k=5))
    for score in range(10, 0, -1):
        assert pair.commit(remove(f"d{score:03}")).short == []
    assert pair.shown(number) == []


def test_who_held_all_and_lets_go_of_some_can_be_short(pair: Pair) -> None:
    pair.line(10)
    number = pair.add(watch(*X, k=5))
    pair.commit(*(put(f"n{score}", score, 0, 0, 0) for score in range(20, 40)))
    assert pair.commit(*(remove(f"n{score}") for score in range(29, 40))) == Affected([number], [])
    assert pair.commit(remove("n28")) == Affected([], [number])


def test_what_is_below_the_floor_does_not_take_the_place_of_what_was_let_go(pair: Pair) -> None:
    pair.line(10)
    number = pair.add(watch(*X, k=5))
    pair.commit(*(put(f"n{score}", score, 0, 0, 0) for score in range(20, 40)))
    pair.commit(remove("n39"))
    pair.commit(put("low", 19, 0, 0, 0))
    assert pair.commit(*(remove(f"n{score}") for score in range(28, 39))).short == [number]


def test_below_min_score_there_is_nothing_to_search_for(pair: Pair) -> None:
    pair.line(40)
    number = pair.add(watch(*X, k=5, min_score=30.0))
    assert pair.shown(number) == ["d040", "d039", "d038", "d037", "d036"]
    assert pair.commit(*(remove(f"d{score:03}") for score in range(40, 30, -1))) == Affected([number], [])
    assert pair.shown(number) == ["d030"]
    assert pair.commit(put("low", 29.9, 0, 0, 0)) == Affected([], [])


@pytest.mark.parametrize(
    ("min_score", "shown"), [(0.1, []), (float(np.float32(0.1)), ["d"]), (1e300, []), (-1e300, ["d"])]
)
def test_a_min_score_between_two_float32_is_rounded_up(pair: Pair, min_score: float, shown: list[str]) -> None:
    below = np.nextafter(np.float32(0.1), np.float32(0))
    score = below if float(np.float32(0.1)) > min_score else np.float32(0.1)
    number = pair.add(watch(*X, k=1, min_score=min_score))
    pair.commit(put("d", float(score), 0, 0, 0))
    assert pair.shown(number) == shown


def test_equal_scores_stand_by_id_and_the_floor_does_too(pair: Pair) -> None:
    pair.commit(*(put(f"e{number:02}", *X) for number in range(10, 40)))
    number = pair.add(watch(*X, k=2))
    assert pair.shown(number) == ["e10", "e11"]
    pair.commit(put("e99", *X), put("e00", *X))
    assert pair.shown(number) == ["e00", "e10"]
    pair.commit(remove("e00"), *(remove(f"e{one}") for one in range(10, 23)))
    assert pair.shown(number) == ["e23", "e24"]


def test_excluded_documents_stay_out(pair: Pair) -> None:
    pair.line(5)
    number = pair.add(watch(*X, k=2, excluded=["d004", "new"]))
    assert pair.shown(number) == ["d005", "d003"]
    assert pair.commit(put("new", 9, 0, 0, 0), put("d004", 8, 0, 0, 0)) == Affected([], [])


def test_metadata_comes_into_a_filter_and_goes_out_of_it(pair: Pair) -> None:
    pair.line(3)
    number = pair.add(replace(watch(*X, k=2), where=RED))
    assert pair.standing.wants_vectors
    assert pair.commit(patch("d002", color="red")) == Affected([number], [])
    assert pair.shown(number) == ["d002"]
    assert pair.commit(patch("d003", color="red"), patch("d002", color="blue")) == Affected([number], [])
    assert ids(take_difference(pair.standing, number)) == (["d003"], [], ["d002"])


def test_where_a_vector_is_missing_the_watch_is_short(pair: Pair) -> None:
    pair.line(3)
    red, any_color = replace(watch(*X, k=2), where=RED), watch(*X, k=2)
    number, other = pair.add(red), pair.add(any_color)
    assert pair.commit(patch("d001", color="blue"), with_vectors=False) == Affected([], [])
    assert pair.commit(patch("d001", color="red"), with_vectors=False) == Affected([], [number])
    pair.refill(number, red)
    assert pair.shown(number) == ["d001"]
    assert not pair.standing.waits(other)


def test_a_new_vector_that_is_missing_makes_all_short(pair: Pair) -> None:
    pair.line(3)
    number = pair.add(watch(*X, k=2))
    applied = pair.world.commit(put("d001", 9, 0, 0, 0))
    assert applied is not None
    assert pair.standing.apply(net(applied, vector=None)) == Affected([], [number])


def test_where_the_metadata_before_is_unknown_a_document_may_have_come_in(pair: Pair) -> None:
    pair.line(3)
    number = pair.add(replace(watch(*X, k=2), where=RED))
    applied = pair.world.commit(patch("d001", color="red"))
    assert applied is not None
    assert pair.standing.apply(net(applied, before=None, net=True)) == Affected([number], [])
    assert pair.shown(number) == ["d001"]


def test_changes_since_a_search_are_applied_to_what_it_found(pair: Pair) -> None:
    pair.line(40)
    one = watch(*X, k=2)
    found = pair.world.search(one)
    pair.commit(put("new", 50, 0, 0, 0))
    pair.commit(remove("d040"))
    assert pair.standing.reaches(found.index_version)
    assert pair.shown(pair.standing.add(one, found)) == ["new", "d039"]


def test_changes_a_search_knew_of_are_passed_over(pair: Pair) -> None:
    pair.line(40)
    first = pair.world.commit(put("new", 50, 0, 0, 0))
    second = pair.world.commit(remove("new"), put("d001", 60, 0, 0, 0))
    assert first is not None
    assert second is not None
    number = pair.add(watch(*X, k=2))
    assert pair.shown(number) == ["d001", "d040"]
    for applied in (first, second):
        assert pair.standing.apply(applied) == Affected([], [])
    assert pair.shown(number) == ["d001", "d040"]


def test_the_log_of_commits_is_bounded() -> None:
    pair = Pair(log_bytes=2000)
    pair.line(3)
    at = pair.world.index_version
    assert pair.standing.reaches(at)
    for _ in range(20):
        pair.commit(put("new", 1, 2, 3, 4))
        pair.commit(remove("new"))
    assert not pair.standing.reaches(at)
    assert pair.standing.reaches(pair.world.index_version - 1)
    assert pair.standing.reaches(pair.world.index_version + 5)


def test_a_search_within_a_commit_is_not_reached(pair: Pair) -> None:
    pair.line(3)
    assert pair.standing.reaches(0)
    assert not pair.standing.reaches(2)


def test_a_watch_that_moves_is_told_the_way_from_where_it_was(pair: Pair) -> None:
    pair.line(3)
    pair.commit(put("other", 0, 5, 0, 0))
    number = pair.add(watch(*X, k=2))
    client = Client({one.document.id: (one.score, one.document) for one in pair.standing.answer(number)})
    for moved in (watch(0, 1, 0, 0, k=2), replace(watch(*X, k=2), where=RED), watch(*X, k=2)):
        pair.standing.move(number, moved, pair.world.search(moved))
        client.apply(take_difference(pair.standing, number))
        assert client.top() == pair.world.top(moved)


def test_commits_follow_each_other_without_gaps(pair: Pair) -> None:
    with pytest.raises(AssertionError, match="without gaps"):
        pair.standing.apply(Applied(2, 2, ()))


def test_removed_watches_leave_the_others_in_place(pair: Pair) -> None:
    pair.line(9)
    numbers = [pair.add(watch(*X, k=k)) for k in (1, 2, 3, 4)]
    for number in numbers[:3]:
        pair.standing.remove(number)
    assert len(pair.standing) == 1
    assert pair.commit(put("new", 99, 0, 0, 0)) == Affected([numbers[3]], [])
    assert pair.shown(numbers[3]) == ["new", "d009", "d008", "d007"]


@pytest.mark.parametrize("k", [1, 5, 6, 10, 11, 20, 50, MAX_K])
def test_any_k_is_served(pair: Pair, k: int) -> None:
    pair.line(400)
    number = pair.add(watch(*X, k=k))
    pair.commit(*(remove(f"d{score:03}") for score in range(400, 400 - k, -1)), put("new", 500, 0, 0, 0))
    assert pair.shown(number) == ["new", *(f"d{score:03}" for score in range(400 - k, 401 - 2 * k, -1))]


@pytest.mark.parametrize("metric", list(Metric))
def test_equals_brute_force_to_the_last_bit_on_vectors_of_any_length(metric: Metric) -> None:
    rng = np.random.default_rng(5)
    world = World(metric, 24)
    lengths = [1.0] if metric is Metric.COSINE else [1e-3, 1.0, 1e3]

    def some() -> Operation:
        numbers = rng.standard_normal(24) * rng.choice(lengths)
        return put(f"d{rng.integers(400)}", *numbers.astype(np.float32))

    world.commit(*(some() for _ in range(600)))
    standing = Standing(24, metric, world.index_version)
    standings = []
    for _ in range(60):
        one = Watch((rng.standard_normal(24) * rng.choice(lengths)).astype(np.float32), 10)
        standings.append((standing.add(one, world.search(one)), one))
    for count in [1, 3, 300, *[40] * 20]:
        applied = world.commit(*(some() for _ in range(count)))
        assert applied is not None
        for number in standing.apply(applied).short:
            one = next(one for which, one in standings if which == number)
            standing.refill(number, world.search(one))
        for number, one in standings:
            answer = standing.answer(number)
            assert [(ranked.document.id, ranked.score, ranked.document.version) for ranked in answer] == world.top(one)


@pytest.mark.parametrize("metric", list(Metric))
def test_what_a_pair_scores_depends_on_nothing_but_the_pair(metric: Metric) -> None:
    rng = np.random.default_rng(3)
    for dimension in (1, 7, 384, 1000):
        queries, rows = rng.standard_normal((2, 65, dimension)).astype(np.float32)
        together = vectors.paired_scores(queries, rows, metric)
        alone = [vectors.paired_scores(queries[i : i + 1], rows[i : i + 1], metric)[0] for i in range(65)]
        assert together.tolist() == [float(one) for one in alone]
        assert np.allclose(
            together, [vectors.scores(queries[i], rows[i : i + 1], metric)[0] for i in range(65)], rtol=1e-4
        )


def test_documents_nobody_holds_are_forgotten(pair: Pair) -> None:
    number = pair.add(watch(*X, k=2))
    for start in range(0, 12_000, 2000):
        pair.commit(*(put(f"d{one:05}", one, 0, 0, 0) for one in range(start, start + 2000)))
    assert pair.shown(number) == ["d11999", "d11998"]
    assert len(pair.standing._documents) < 8000


def test_a_search_that_finds_nothing_is_complete(pair: Pair) -> None:
    with pytest.raises(AssertionError, match="all there is"):
        pair.standing.add(watch(*X, k=2), Nearest(0, (), complete=False))

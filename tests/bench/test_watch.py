"""The benchmark runs and its report has what it promises. Its speeds decide nothing here, its answers do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from bench import __main__ as command
from bench import watch
from bench.engine import data
from bench.recommend.data import Catalogue, Rating
from bench.watch import changes, gateway, users
from bench.watch.events import events
from bench.watch.exact import ANY, NOWHERE, Asked, Corpus, answers, nearest
from gateway.engine.types import Change, EventType


@pytest.mark.timeout(240)
def test_a_small_run_gives_the_answers_of_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = watch.Size(4000, 5000.0, 150, against_rivals=True), watch.Size(8000, 500.0, 30, against_rivals=False)
    monkeypatch.setattr(watch, "SIZES", sizes)
    status = command.main(["watch", "--out", str(tmp_path), "--seed", "7", "--scale", "0.05", "--check"])
    report = json.loads((tmp_path / "watch.json").read_text())
    assert report["seed"] == 7
    targets = {target["name"]: target for target in report["targets"]}
    assert len(targets) == 12
    for name in ("equal answers", "changes not told", "lists right", "without an update", "differ from a fresh search"):
        assert all(target["met"] for one, target in targets.items() if name in one), name
    assert status == (0 if all(target["met"] for target in targets.values()) else 1)
    sections = [one["section"] for one in report["results"]]
    assert sections == ["core"] * 2 + ["again"] * 2 + ["ratios", "core", "memory", "gateway", "users"]
    assert [one["commit"] for one in report["results"] if one["section"] == "core"] == [changes.SIZE, 1, changes.SIZE]
    assert report["results"][0]["refills"] > 0
    told = report["results"][-2]
    assert told["aimed"] == told["told"]["count"] == told["room"]["count"] == told["events"] / 5
    recommended = report["results"][-1]
    assert recommended["idle"]["count"] > 0
    assert max(recommended["told_p99_by_second"]) <= recommended["told"]["longest"]


def test_brute_force_heeds_groups_and_deletions_and_orders_by_score_then_id() -> None:
    rows = data.unit(np.array([[1, 0], [0, 1], [1, 1], [1, 1], [1, 0.1], *([[-1, -1]] * 60)], np.float32))
    groups = np.zeros(len(rows), np.int64)
    groups[4], groups[0] = 1, NOWHERE
    corpus = Corpus(rows, groups)
    asked = Asked(data.unit(np.array([[1, 0], [1, 0]], np.float32)), np.array([ANY, 0]))
    assert [set(one) for one in nearest(asked, corpus, 3).tolist()] == [{2, 3, 4}, {1, 2, 3}]
    ids = ["a", "b", "d", "c", "e", *(f"z{i}" for i in range(60))]
    assert [[name for name, _ in one] for one in answers(asked, corpus, ids, 3)] == [["e", "c", "d"], ["c", "d", "b"]]


def test_commits_take_apart_what_is_nearest_to_one_watch() -> None:
    rng = np.random.default_rng(1)
    world = changes.World(2000, rng)
    focus = changes.queries(world, 1, rng)
    before = nearest(focus, world.corpus, 3 * changes.TAKEN)[0]
    ids = {world.documents[at].id for at in before.tolist()}
    (applied,) = world.commit(focus)
    made = [event for event in applied.events if isinstance(event, Change)]
    assert len(made) == changes.SIZE == applied.index_version - applied.first_index_version + 1
    changed = {event.document.id for event in made}
    assert len(changed) == changes.SIZE
    assert ids <= changed
    deleted = [event.document.id for event in made if event.event_type is EventType.DELETE]
    assert len(deleted) == changes.TAKEN
    assert set(deleted) <= ids
    singles = [event for one in world.commit(focus, 1) for event in one.events if isinstance(event, Change)]
    kinds = [event.event_type for event in singles]
    assert kinds.count(EventType.INSERT) == changes.REVIVED == kinds.count(EventType.DELETE)


def test_a_fifth_of_the_events_is_aimed_and_the_others_change_no_answer() -> None:
    rng = np.random.default_rng(1)
    rows = data.movies()[:2000]
    queries = data.noisy(rows[:40], rng)
    some = list(islice(events(queries, rows, rng), 500))
    assert len([one for one in some if one.watch is not None]) == 100
    last = np.partition(queries @ rows.T, -10, axis=1)[:, -10]
    for event in some:
        entered = np.flatnonzero(queries @ event.vector >= last).tolist()
        assert event.watch in entered if event.watch is not None else not entered


def test_a_list_that_is_wrong_is_counted() -> None:
    rows = data.movies()[:500]
    asked, corpus = Asked(rows[:3], np.full(3, ANY)), Corpus(rows, np.zeros(500, np.int64))
    ids = [f"d{i}" for i in range(500)]
    audience = gateway.Audience([dict(one) for one in answers(asked, corpus, ids, 10)])
    assert audience.checked(asked, corpus, ids, set()) == gateway.Checked(3, 3, 1, 1.0)
    audience.lists[1]["d1"] = float(np.nextafter(np.float32(audience.lists[1]["d1"]), np.float32(0)))
    del audience.lists[2]["d2"]
    assert audience.checked(asked, corpus, ids, set()) == gateway.Checked(1, 1, 1, 29 / 30)


def test_a_list_may_lack_what_its_first_search_missed_but_nothing_that_was_written_since_unless_it_is_exact() -> None:
    rows = data.movies()[:500]
    asked, corpus = Asked(rows[:2], np.full(2, ANY)), Corpus(rows, np.zeros(500, np.int64))
    ids = [f"d{i}" for i in range(500)]
    missed = [one[3][0] for one in answers(asked, corpus, ids, 11)]
    lists = [[pair for i, pair in enumerate(one) if i != 3] for one in answers(asked, corpus, ids, 11)]
    audience = gateway.Audience([dict(one) for one in lists])
    assert audience.checked(asked, corpus, ids, set()) == gateway.Checked(0, 1, 1, 0.9)
    assert audience.checked(asked, corpus, ids, {missed[1]}).right == 0
    told = users.Audience({"ann": ["a", "b"], "bob": ["a", "b"]})
    assert told.differing({"ann": ["a", "b"], "bob": ["b", "a"]}) == ["bob"]


def test_each_user_acts_once_on_what_others_rated() -> None:
    catalogue = Catalogue([f"movie:{i}" for i in range(9)], np.eye(9, dtype=np.float32), np.zeros(9, np.float32))
    known: Sequence[Rating] = [Rating(f"user:{i % 4}", i, 7, i) for i in range(9)]
    acts = users.drawn(catalogue, known, np.random.default_rng(1))
    assert sorted(act.user for act in acts) == [f"user:{i}" for i in range(4)]
    own = {(one.user, catalogue.ids[one.item]) for one in known}
    assert not own & {(act.user, act.item) for act in acts}

"""The engine's benchmark runs from end to end on little data. Its figures decide nothing here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import __main__ as command
from bench.engine import churn, data, filters, load, plots, restart, steady
from bench.harness import Percentiles


def test_a_small_run_has_every_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(churn, "ROUNDS", 2)
    monkeypatch.setattr(churn, "COMPARED", (0, 1, 2))
    monkeypatch.setattr(churn, "QUERIES", 20)
    monkeypatch.setattr(load, "REPEATS", 1)
    monkeypatch.setattr(load, "BULK_ROUNDS", 1)
    monkeypatch.setattr(steady, "WINDOWS", 2)
    monkeypatch.setattr(steady, "WINDOW_S", 0.2)
    monkeypatch.setattr(steady, "QUERIES", 60)
    monkeypatch.setattr(restart, "REPEATS", 1)
    small = data.movies()[:1000]
    monkeypatch.setattr(filters, "movies", lambda: small)
    monkeypatch.setattr(filters, "ALLOWED", (50, 500))
    assert command.main(["engine", "--scale", "0.02", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "engine.json").read_text())
    sections = {result["section"] for result in report["results"]}
    assert sections == {
        "churn",
        "dead shares",
        "rates",
        "filters",
        "switch-over",
        "bulk",
        "search",
        "stalls",
        "restart",
    }
    rivals = {result["name"] for result in report["results"] if result["section"] == "churn"}
    assert rivals == {"hotindex", "hnswlib in place", "hnswlib replace_deleted", "usearch", "fresh graph"}
    by_name = {target["name"]: target for target in report["targets"]}
    assert by_name["vectors that changes of metadata touched"]["value"] == 0
    text = capsys.readouterr().out
    assert all(name in text for name in by_name)


def test_recall_counts_what_was_found() -> None:
    rows = data.unit(np.random.default_rng(1).standard_normal((50, 8)))
    expected = data.nearest(rows, rows[:5], 3)
    assert all(i in one for i, one in enumerate(expected))
    assert data.recall([list(one) for one in expected], expected) == 1
    assert data.recall([[*list(one)[:2], -1] for one in expected], expected) == pytest.approx(2 / 3)


def test_data_are_the_same_for_the_same_seed() -> None:
    first, again, other = (data.grown(32_000, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(np.linalg.norm(first[-100:], axis=1), 1, atol=1e-5)


def test_plots_are_pictures(tmp_path: Path) -> None:
    times = Percentiles.of([0.001, 0.002])
    points = [churn.Point(name, x, 0.9, times, times) for name in ("hotindex", "fresh graph") for x in (0, 1)]
    for path in plots.draw(points, tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")

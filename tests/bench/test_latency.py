"""The benchmark runs and its report has what it promises. Its figures decide nothing here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import latency
from bench.harness import Percentiles, Report, Target


def test_a_small_run_writes_table_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "SUBSCRIBERS", (1, 100))
    monkeypatch.setattr(latency, "EVENTS", 20)
    monkeypatch.setattr(latency, "WARM_UP", 5)
    status = command.main(["latency", "--scale", "0.1", "--out", str(tmp_path), "--seed", "7", "--check"])
    report = json.loads((tmp_path / "latency.json").read_text())
    assert report["seed"] == 7
    assert report["environment"]["versions"]["hnswlib"]
    assert {(r["server"], r["subscribers"], r["rate"]) for r in report["results"]} == {
        (server, subscribers, rate)
        for server in ("hotindex", "floor")
        for subscribers in (1, 100)
        for rate in (None, 200.0)
    }
    assert all(r["last_ms"]["count"] == 20 for r in report["results"])
    assert len(report["targets"]) == 4
    assert status == (0 if all(target["met"] for target in report["targets"]) else 1)
    assert "floor" in capsys.readouterr().out


def test_percentiles_are_in_milliseconds() -> None:
    found = Percentiles.of([i / 1000 for i in range(101)])
    assert found.count == 101
    assert [found.p50, found.p99, found.longest] == pytest.approx([50, 99, 100])


def test_a_missed_target_is_a_missed_report() -> None:
    report = Report("x", "", 1, ("a",), targets=[Target("t", 1.0, 2.0)])
    assert not report.missed
    report.targets.append(Target("u", 3.0, 2.0))
    assert report.missed

"""The benchmark runs and its report has what it promises. Its speeds decide nothing here, its answers do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import watch


def test_a_small_run_gives_the_answers_of_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "WATCHES", {200: 5000.0, 300: 500.0})
    status = command.main(["watch", "--out", str(tmp_path), "--seed", "7", "--scale", "0.1", "--check"])
    report = json.loads((tmp_path / "watch.json").read_text())
    assert report["seed"] == 7
    assert [one["equal"] for one in report["results"]] == [1.0, 1.0]
    assert all(one["updates"] == 640 for one in report["results"])
    assert len(report["targets"]) == 6
    assert status == (0 if all(target["met"] for target in report["targets"]) else 1)

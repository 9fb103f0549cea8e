"""The benchmark of the fan-out runs, counts and checks. Its figures decide nothing here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import fanout
from bench.fanout import gateway, processes
from bench.fanout.audience import Outcome, Task
from bench.fanout.processes import Audience, rival


@pytest.mark.timeout(240)
def test_a_small_run_writes_every_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "SUBSCRIBERS", (20,))
    monkeypatch.setattr(fanout, "DELIVERIES", 400)
    monkeypatch.setattr(fanout, "CROWD", 50)
    monkeypatch.setattr(fanout, "IDLE", 50)
    monkeypatch.setattr(fanout, "AUDIENCE", 20)
    monkeypatch.setattr(fanout, "DURABLE_RATE", 100)
    monkeypatch.setattr(fanout, "DURABLE_S", 0.5)
    monkeypatch.setattr(fanout, "STALLED_S", 0.3)
    monkeypatch.setattr(gateway, "RESUME_S", 0.4)
    monkeypatch.setattr(fanout, "MISSED", 300)
    monkeypatch.setattr(fanout, "DOCUMENTS", 100)
    monkeypatch.setattr(gateway, "IDS", 50)
    monkeypatch.setattr(gateway, "SLEEPERS", 5)
    monkeypatch.setattr(gateway, "SLEEP_S", 0.5)
    monkeypatch.setattr(gateway, "WARM_UP_S", 0.2)
    monkeypatch.setattr(processes, "npm", lambda: None)
    command.main(["fanout", "--scale", "0.1", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "fanout.json").read_text())
    assert {one["section"] for one in report["results"]} == {
        "rates",
        "filters",
        "durable",
        "stalled",
        "resume",
        "crowd",
        "idle",
    }
    assert len(report["targets"]) == 15


@pytest.mark.skipif(not shutil.which("taskset"), reason="util-linux has it")
def test_every_subscriber_gets_every_event(tmp_path: Path) -> None:
    with rival("transport", tmp_path) as server, Audience(Task(server.url, 30, '"last":true')) as audience:
        server.publish(40)
        outcome: Outcome = audience.outcome()
    assert (outcome.events, outcome.deliveries) == (40, 1200)

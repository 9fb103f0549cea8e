"""The benchmark of the cluster runs, counts and checks. Its figures decide nothing here."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import cluster
from bench.cluster import clients
from bench.cluster.redis import Counts


@pytest.mark.timeout(240)
def test_a_small_run_writes_every_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "DOCUMENTS", 200)
    monkeypatch.setattr(cluster, "EVENTS", 20)
    monkeypatch.setattr(cluster, "WARM_UP", 5)
    monkeypatch.setattr(cluster, "SINGLES", 100)
    monkeypatch.setattr(cluster, "BATCHES", 4)
    monkeypatch.setattr(cluster, "BATCH_DOCUMENTS", 20)
    monkeypatch.setattr(cluster, "RATE", 100.0)
    monkeypatch.setattr(cluster, "MISSED", 300)
    command.main(["cluster", "--scale", "0.1", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "cluster.json").read_text())
    assert report["environment"]["versions"]["redis-server"]
    sections = {one["section"]: one for one in report["results"]}
    assert set(sections) == {"latency", "writes", "steady", "memory", "return", "digests"}
    assert len(report["targets"]) == 7
    assert all(one["count"] == 20 for one in sections["latency"]["arrived_ms"])
    assert sections["steady"]["commands_sent"]["evalsha"] >= sections["steady"]["published_messages"]
    assert sections["return"]["rounds"][0]["missed"] == 300
    assert len(set(sections["digests"]["digests"].values())) == 1


def test_without_redis_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="redis-server is not on the PATH"):
        command.main(["cluster", "--out", str(tmp_path)])


def test_what_scripts_call_has_not_travelled() -> None:
    calls = Counter(evalsha=10, xrange=1, publish=9, xadd=6, hgetall=5, time=3, hset=9, hmget=7, info=7)
    assert Counts(calls, 0, 0).sent == Counter(evalsha=10, xrange=1, publish=3, hgetall=2)

from __future__ import annotations

import json
import os
import resource
import zlib
from pathlib import Path

import numpy as np
import pytest

from gateway.engine import snapshot
from gateway.engine.graph import Graph
from gateway.errors import StorageUnavailable
from tests.engine.support import SPEC, commit, make, nearest, put, reopen

EPOCH = "epoch"


@pytest.fixture
def graph() -> Graph:
    made = Graph(SPEC)
    rows = np.random.default_rng(1).standard_normal((100, SPEC.dimension)).astype(np.float32)
    made.insert(rows, np.arange(1, 101))
    made.kill(50)
    return made


def write(directory: Path, graph: Graph) -> Path:
    return snapshot.write(directory, graph, SPEC, EPOCH, 100, 101)


def test_what_was_written_is_loaded(tmp_path: Path, graph: Graph) -> None:
    write(tmp_path, graph)
    loaded = snapshot.load(tmp_path, SPEC, EPOCH, 1000)
    assert loaded is not None
    assert sorted(loaded.graph.labels().tolist()) == list(range(1, 101))
    assert loaded.graph.live == 99
    loaded.graph.bury(np.array([50]))
    assert loaded.graph.live == 99


def test_the_last_two_are_kept(tmp_path: Path, graph: Graph) -> None:
    for _ in range(4):
        write(tmp_path, graph)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"graph-0000000{n}.{kind}" for n in (3, 4) for kind in ("hnsw", "json")
    ]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
def test_a_damaged_file_is_set_aside_and_the_one_before_taken(tmp_path: Path, graph: Graph, damage: object) -> None:
    write(tmp_path, graph)
    assert callable(damage)
    damage(write(tmp_path, graph).with_suffix(".hnsw"))
    loaded = snapshot.load(tmp_path, SPEC, EPOCH, 1000)
    assert loaded is not None
    assert (tmp_path / "graph-00000002.json.bad").exists()
    assert (tmp_path / "graph-00000001.json").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("format", 2), ("library", "hnswlib 0.1"), ("epoch", "another"), ("size_bytes", 1), ("crc32", 0), ("count", "x")],
)
def test_a_snapshot_of_something_else_is_not_believed(tmp_path: Path, graph: Graph, field: str, value: object) -> None:
    path = write(tmp_path, graph)
    sealed = json.loads(path.read_text())
    changed = {**sealed["manifest"], field: value}
    crc32 = zlib.crc32(json.dumps(changed, separators=(",", ":")).encode())
    path.write_text(json.dumps({"manifest": changed, "crc32": crc32}))
    assert snapshot.load(tmp_path, SPEC, EPOCH, 1000) is None
    assert path.with_name(f"{path.name}.bad").exists()


def test_a_manifest_that_was_altered_is_not_believed(tmp_path: Path, graph: Graph) -> None:
    path = write(tmp_path, graph)
    sealed = json.loads(path.read_text())
    sealed["manifest"]["first_hot"] += 1
    path.write_text(json.dumps(sealed))
    ((_, reason),) = snapshot.inspect(tmp_path, SPEC, EPOCH, 1000)
    assert reason == "the manifest is not what was written"


def test_no_snapshot_is_no_fault(tmp_path: Path) -> None:
    assert snapshot.load(tmp_path, SPEC, EPOCH, 1000) is None


def test_a_full_disk_is_noticed_and_leaves_the_last_one(tmp_path: Path, graph: Graph) -> None:
    """hnswlib itself reports success when the disk is full."""
    write(tmp_path, graph)
    before = sorted(path.name for path in tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageUnavailable, match="snapshot"):
            write(tmp_path, graph)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert snapshot.load(tmp_path, SPEC, EPOCH, 1000) is not None


def test_an_unfinished_one_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "graph-00000001.tmp").write_bytes(b"half")
    assert snapshot.load(tmp_path, SPEC, EPOCH, 1000) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("age", ["fresh", "old", "none"])
def test_recovery_needs_no_snapshot_of_a_certain_age(tmp_path: Path, age: str) -> None:
    directory = tmp_path / "things"
    collection = make(directory)
    for i in range(40):
        commit(collection, put(f"d{i}", i, 0, 0, 0))
    collection.move(32)
    if age == "old":
        collection.write_snapshot()
    for i in range(40):
        commit(collection, put(f"d{i}", i, 1, 0, 0))
    collection.move(160)
    if age == "fresh":
        collection.write_snapshot()
    commit(collection, put("d3", 99, 0, 0, 0))
    collection.close()
    recovered = reopen(directory)
    for i in range(40):
        if i != 3:
            assert nearest(recovered, i, 1, 0, 0, k=1) == [f"d{i}"]
    assert nearest(recovered, 99, 0, 0, 0, k=1) == ["d3"]
    assert sorted(nearest(recovered, 0, 0, 0, 0, k=100)) == sorted(f"d{i}" for i in range(40))
    recovered.close()

"""`hotindex check` on data directories, sound and damaged."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.commands.process import GatewayProcess
from gateway.engine.types import Spec
from tests.engine.support import DIMENSION, SPEC, commit, make, put


def check(data_dir: Path, *names: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "gateway", "check", "--data-dir", str(data_dir), *names]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in run.stderr
    return run.returncode, run.stdout + run.stderr


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with two collections, one of which has a snapshot and changes since."""
    folder = tmp_path / "data"
    (folder / "collections").mkdir(parents=True)
    things = make(folder / "collections" / "things", replace(SPEC, indexes=("n",)))
    commit(things, *(put(f"d{i}", i, 0, 0, 1, metadata={"n": i}) for i in range(100)))
    things.move(80)
    things.write_snapshot()
    commit(things, *(put(f"d{i}", i, 0, 0, 2) for i in range(10)))
    things.close()
    make(folder / "collections" / "empty", Spec("empty", DIMENSION)).close()
    return folder


def test_a_sound_directory(data: Path) -> None:
    status, text = check(data)
    assert status == 0
    assert "things: store: 100 documents at index_version 110" in text
    assert "things: graph-00000001: 80 vectors; at start 30 are to be added and 10 to be marked dead" in text
    assert "empty: snapshots: none" in text
    assert text.endswith("2 collections checked, all sound\n")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def spoil_a_vector(path: Path) -> None:
    """What SQLite can't know: the page is well formed, its content is another."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE vectors SET vector = zeroblob(16) WHERE vector_version = 50")
    connection.close()


def lose_a_vector(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM vectors WHERE vector_version = 50")
    connection.close()


def fill_with_garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("store.db", spoil_a_vector, "store: DAMAGED: the vector of document 'd49' is not what was written"),
        ("store.db", lose_a_vector, "store: DAMAGED: document 'd49' has no vector"),
        ("store.db", fill_with_garbage, "store: DAMAGED: can't open"),
        ("graph-00000001.hnsw", flip_a_bit, "graph-00000001: DAMAGED: graph-00000001.hnsw has"),
        ("graph-00000001.json", fill_with_garbage, "graph-00000001: DAMAGED: "),
    ],
)
def test_damage_is_named(data: Path, file: str, damage: Callable[[Path], None], words: str) -> None:
    for leftover in ("store.db-wal", "store.db-shm"):
        assert not (data / "collections/things" / leftover).exists()
    damage(data / "collections" / "things" / file)
    status, text = check(data, "things")
    assert status == 1
    assert words in text
    assert "not all sound" in text
    assert check(data, "empty")[0] == 0


def test_what_can_not_be_checked(tmp_path: Path, data: Path) -> None:
    assert check(tmp_path / "nowhere")[0] == 1
    assert "no collection 'others'" in check(data, "others")[1]
    with GatewayProcess(tmp_path / "running", ["--log-level", "error"]):
        status, text = check(tmp_path / "running")
    assert status == 1
    assert "in use by another hotindex process" in text

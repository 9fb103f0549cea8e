"""Disks that fill up, and kills at any moment: nothing acknowledged is lost, nothing unacknowledged is half there."""

from __future__ import annotations

import os
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from gateway.engine import verify
from gateway.engine.collection import Collection
from gateway.engine.types import Put
from gateway.errors import StorageUnavailable
from tests.engine.support import commit, make, nearest, outcomes, put, reopen, vector, write

ROUNDS = 50
DOCUMENTS = 60
TOGETHER = 3


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_a_commit(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    commit(collection, *(put(f"d{i}", i, 0, 0, 1) for i in range(100)))
    log_bytes = (tmp_path / "things" / "store.db-wal").stat().st_size
    with largest_file(log_bytes + 100_000):
        with pytest.raises(StorageUnavailable):
            outcomes(collection, write(*(put(f"n{i}", i, 1, 0, 1, metadata={"x": "x" * 1000}) for i in range(500))))
        assert collection.index_version == 100
        assert nearest(collection, 50, 0, 0, 1, k=1) == ["d50"]
        assert collection.get("n1") is None
        with pytest.raises(StorageUnavailable):
            fill(collection)
        reached = collection.index_version
    assert commit(collection, put("after", 9, 9, 9, 9)).index_version == reached + 1
    collection.close()
    recovered = reopen(tmp_path / "things")
    assert recovered.index_version == reached + 1
    assert nearest(recovered, 9, 9, 9, 9, k=1) == ["after"]
    recovered.close()
    assert all(finding.sound for finding in verify.collection(tmp_path / "things"))


def fill(collection: Collection) -> None:
    for i in range(10_000):
        commit(collection, put("d1", i, 2, 0, 1, metadata={"x": "x" * 10_000}))


def test_a_disk_that_is_full_at_upkeep(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    commit(collection, *(put(f"d{i}", i, 0, 0, 1, metadata={"x": "x" * 1000}) for i in range(500)))
    collection.move(500, hurry=True)
    commit(collection, *(put(f"d{i}", i, 1, 0, 1) for i in range(500)))
    with largest_file(4096):
        for work_on_disk in (collection.tidy, collection.write_snapshot, collection.probe):
            with pytest.raises(StorageUnavailable):
                work_on_disk()
        assert nearest(collection, 50, 1, 0, 1, k=1) == ["d50"]
    collection.tidy()
    collection.write_snapshot()
    collection.close()
    assert all(finding.sound for finding in verify.collection(tmp_path / "things"))


def test_fifty_kills_at_any_moment(tmp_path: Path) -> None:
    """Each write changes three documents together; a child writes, moves, saves and rebuilds until it is killed."""
    rng = random.Random(7)
    make(tmp_path / "things").close()
    acknowledged = 0
    for number in range(ROUNDS):
        acknowledged = kill_after(rng.randint(1, 120), tmp_path / "things", acknowledged, seed=number)
        collection = reopen(tmp_path / "things")
        acknowledged = check_state(collection, acknowledged)
        collection.close()
    assert all(finding.sound for finding in verify.collection(tmp_path / "things"))
    assert acknowledged > ROUNDS


def kill_after(count: int, directory: Path, start: int, seed: int) -> int:
    """Let a child write from `start` on, kill it at or soon after its `count`th acknowledgement; return the last one."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(receiving)
            work(directory, start, seed, sending)
        finally:
            os._exit(1)
    os.close(sending)
    last = start
    with os.fdopen(receiving, "rb", buffering=0) as acknowledgements:
        for _ in range(count):
            last = int.from_bytes(acknowledgements.read(8), "little")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while rest := acknowledgements.read(8):
            last = int.from_bytes(rest, "little")
    return last


def work(directory: Path, start: int, seed: int, sending: int) -> None:
    rng = random.Random(seed)
    collection = reopen(directory)
    for number in range(start + 1, start + 10_000):
        commit(collection, *(stamped(f"d{(TOGETHER * number + i) % DOCUMENTS}", number) for i in range(TOGETHER)))
        os.write(sending, number.to_bytes(8, "little"))
        match rng.randint(0, 30):
            case 0:
                collection.write_snapshot()
            case 1:
                finish = collection.rebuild(lambda: False)
                assert finish is not None
                finish()
            case 2:
                collection.tidy()
            case chance if chance < 12:
                collection.move(20)


def stamped(document_id: str, number: int) -> Put:
    """Vector and metadata both tell the number of the write."""
    return Put(document_id, vector(number, number % 7, 1, 0), metadata={"number": number})


def check_state(collection: Collection, acknowledged: int) -> int:
    """Compare with what the writes up to the last one make; that may be one after the last acknowledged."""
    last, unfinished = divmod(collection.index_version, TOGETHER)
    assert unfinished == 0, "a write is there whole or not at all"
    assert acknowledged <= last <= acknowledged + 1
    expected = {
        f"d{(TOGETHER * number + i) % DOCUMENTS}": number for number in range(1, last + 1) for i in range(TOGETHER)
    }
    assert collection.document_count == len(expected)
    for document_id, number in expected.items():
        found = collection.get(document_id, include_vector=True)
        assert found is not None
        assert msgspec.json.decode(found[0].metadata) == {"number": number}
        assert found[1] == vector(number, number % 7, 1, 0).tobytes()
    if expected:
        newest = {f"d{(TOGETHER * last + i) % DOCUMENTS}" for i in range(TOGETHER)}
        assert set(nearest(collection, last, last % 7, 1, 0, k=TOGETHER)) == newest
    return last

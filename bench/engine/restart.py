"""A gateway that starts on a large collection: time to the first right answer, and memory, beside raw hnswlib."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from websockets.sync.client import connect

from bench.engine.data import Matrix, grown
from gateway.commands.process import GatewayProcess

REPEATS = 5

_RAW = """
import sys, hnswlib, numpy as np
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
index = hnswlib.Index(space="ip", dim={dimension})
index.load_index({path!r})
index.set_ef(64)
row = np.frombuffer(sys.stdin.buffer.read(), np.float32)
labels, _ = index.knn_query(row, 10)
print(labels[0][0], resident() - before, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Restart:
    """Medians, in seconds; bytes per vector."""

    first_answer_s: float
    raw_s: float
    bytes_per_vector: float
    raw_bytes_per_vector: float


def run(data_dir: Path, raw_file: Path, count: int, seed: int) -> Restart:
    """Start gateways on `data_dir`, which holds the collection "large", and raw processes on `raw_file`, by turns."""
    rows = grown(count, np.random.default_rng(seed))
    probe = rows[count // 2]
    ours, raw = [], []
    memory = raw_memory = 0
    for _ in range(REPEATS):
        seconds, raw_memory = _raw(raw_file, probe, count // 2)
        raw.append(seconds)
        seconds, memory = _gateway(data_dir, probe, f"d{count // 2}")
        ours.append(seconds)
    _, empty = _gateway(data_dir.with_name("empty"), None, None)
    return Restart(statistics.median(ours), statistics.median(raw), (memory - empty) / count, raw_memory / count)


def _raw(path: Path, probe: Matrix, expected: int) -> tuple[float, int]:
    code = _RAW.format(dimension=len(probe), path=str(path))
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], input=probe.tobytes(), capture_output=True, check=True)
    seconds = time.perf_counter() - started
    label, resident = done.stdout.split()
    assert int(label) == expected, "a vector is its own nearest neighbour"
    return seconds, int(resident)


def _gateway(data_dir: Path, probe: Matrix | None, expected: str | None) -> tuple[float, int]:
    started = time.perf_counter()
    with GatewayProcess(data_dir, ["--log-level", "error"]) as gateway:
        if probe is not None:
            search = {"action": "search", "collection": "large", "vector": probe.tolist(), "k": 10}
            with connect(gateway.ws) as socket:
                socket.recv()
                socket.send(json.dumps(search))
                answer = json.loads(socket.recv())
            assert answer["results"][0]["id"] == expected, "a vector is its own nearest neighbour"
        seconds = time.perf_counter() - started
        return seconds, _resident(gateway.process.pid)


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096

"""The scriptable service as a process, as the benchmark runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request

import numpy as np

from bench.provider import vector_of
from bench.provider.faults import failing


def test_as_a_process_it_prints_its_port_and_counts() -> None:
    command = [sys.executable, "-m", "bench.provider", "--dimension", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        body = json.dumps({"model": "any", "input": ["a", "b"]}).encode()
        request = urllib.request.Request(f"{url}/v1/embeddings", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            vectors = [item["embedding"] for item in json.load(response)["data"]]
        np.testing.assert_array_equal(np.array(vectors, np.float32), [vector_of("a", 4), vector_of("b", 4)])
        with urllib.request.urlopen(f"{url}/stats") as response:
            stats = json.load(response)
        assert (stats["calls"], stats["answered"], stats["texts"], stats["distinct_texts"]) == (1, 1, 2, 2)
        process.terminate()


def test_the_same_seed_fails_the_same_way() -> None:
    def faults(seed: int) -> list[int]:
        choose = failing(0.5, 0.0, 1.0, seed)
        kinds: dict[str, int] = {}
        return [kinds.setdefault(repr(choose().args[1]), len(kinds)) for _ in range(50)]  # type: ignore[attr-defined]

    assert faults(1) == faults(1) != faults(2)
    assert len(set(faults(1))) > 5

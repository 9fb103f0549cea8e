"""The gateway and the embedding service, each in a process of its own, and what can be asked of them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import cpu_s
from bench.ingest.texts import DIMENSION
from gateway.commands.process import GatewayProcess

LOCAL, SERVICE = "static-minilm-256", "service"
_FLAGS = ["--log-level", "error", "--ping-interval-s", "3600"]
_WINDOW_S, _IDLE_SHARE, _PATIENCE_S = 0.4, 0.08, 60.0


@dataclass(slots=True)
class Provider:
    """An embedding service that can be told to be slow, and to fail."""

    process: subprocess.Popen[str]
    url: str

    async def stats(self) -> dict[str, int]:
        """Return what it counted: `calls`, `texts` and more."""
        stats: dict[str, int] = await asyncio.to_thread(_fetch, f"{self.url}/stats")
        return stats


@contextmanager
def provider(latency_ms: float = 0.0, fail: float = 0.0, seed: int = 1) -> Iterator[Provider]:
    """Start an embedding service; `fail` is the share of calls that fail."""
    command = [sys.executable, "-m", "bench.provider", "--dimension", str(DIMENSION), "--port", "0"]
    command += ["--latency-ms", f"{latency_ms:g}", "--fail", f"{fail:g}", "--seed", str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "it is a pipe"
        try:
            yield Provider(process, f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.terminate()


@dataclass(slots=True)
class Gateway:
    """A gateway with no data at first."""

    process: GatewayProcess

    @property
    def ws(self) -> str:
        return self.process.ws

    @property
    def pid(self) -> int:
        return self.process.process.pid

    async def make(self, collection: str, model: str) -> None:
        """Make a collection whose texts a model embeds."""
        await self._ask(f"/v1/collections/{collection}", {"model": model}, "PUT")

    async def describe(self, collection: str) -> dict[str, Any]:
        description: dict[str, Any] = await self._ask(f"/v1/collections/{collection}")
        return description

    async def search(self, collection: str, text: str, min_index_version: int) -> dict[str, Any]:
        """Return the document nearest to a text, once the gateway has applied what was written so far."""
        query = {"text": text, "k": 1, "include": ["content"], "min_index_version": min_index_version}
        answer = await self._ask(f"/v1/collections/{collection}/search", query, "POST")
        hit: dict[str, Any] = answer["results"][0]
        return hit

    async def changes(self, collection: str) -> list[dict[str, Any]]:
        """Return the latest change of every document, with content and vector."""
        found: list[dict[str, Any]] = []
        since, more = 0, True
        while more:
            page = await self._ask(
                f"/v1/collections/{collection}/changes?since={since}&limit=1000&include=content,vector"
            )
            found += page["changes"]
            since, more = page["index_version"], page["more"]
        return found

    async def embedded(self, model: str) -> int:
        """Return how many texts a model was asked for since the start."""
        stats = await self._ask("/v1/stats")
        return sum(one["texts"] for one in stats["models"] if one["name"] == model)

    async def idle(self) -> None:
        """Wait until what the gateway does in the background, after the writes of a round, is done."""
        due = time.monotonic() + _PATIENCE_S
        busy = True
        while busy and time.monotonic() < due:
            before = cpu_s(self.pid)
            await asyncio.sleep(_WINDOW_S)
            busy = cpu_s(self.pid) - before > _IDLE_SHARE * _WINDOW_S

    async def _ask(self, path: str, body: object = None, method: str = "GET") -> Any:
        return await asyncio.to_thread(_fetch, self.process.http + path, body, method)


@contextmanager
def gateway(service: Provider | None = None, **settings: object) -> Iterator[Gateway]:
    """Start a gateway in a folder of its own; where there is a service, collections may have it for a model.

    `settings` are the model's, where they aren't the defaults.
    """
    flags = list(_FLAGS)
    if service is not None:
        model = {"url": f"{service.url}/v1", "model": "bench", "dimension": DIMENSION, **settings}
        flags += ["--models", json.dumps({SERVICE: model})]
    with tempfile.TemporaryDirectory() as folder, GatewayProcess(Path(folder), flags) as process:
        try:
            yield Gateway(process)
        finally:
            process.kill()  # a clean end takes a snapshot, which nobody needs


def _fetch(url: str, body: object = None, method: str = "GET") -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def memory_mib(pid: int, field: str) -> float:
    """Return a field of a process's memory: `VmRSS` now, `VmHWM` at most since `forget_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/status has no {field}")


def forget_peak(pid: int) -> None:
    """Have VmHWM count from what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")

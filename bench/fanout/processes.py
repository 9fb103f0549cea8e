"""The processes of a fan-out: a server on one core, subscribers and producers on the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

from bench.fanout.audience import Outcome, Task

_SERVE = "from bench.fanout import servers; servers.main()"
HERE = Path(__file__).parent
SERVER_CORE = 0
NODE_WS = "ws@8.18.3"
_CORES = os.cpu_count() or 1


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """Return a command that runs on one core, where there are several."""
    return ["taskset", "-c", str(core), *command] if _CORES > 1 else list(command)


def others() -> str:
    """Return the cores that are not the server's, as taskset takes them."""
    return f"{SERVER_CORE + 1}-{_CORES - 1}" if _CORES > 2 else str(_CORES - 1)


@dataclass(slots=True)
class RivalServer:
    """One of `servers.py`, or Node's."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def publish(self, events: int) -> None:
        self._tell(str(events))

    def cpu_s(self) -> float:
        """Return the processor time used so far."""
        self._tell("")
        return float(_line(self.process.stdout))

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None, "it is a pipe"
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


def _line(stream: IO[str] | None) -> str:
    assert stream is not None, "it is a pipe"
    line = stream.readline()
    if not line:
        raise RuntimeError("the process has ended")
    return line


@contextmanager
def rival(kind: str, folder: Path) -> Iterator[RivalServer]:
    """Start a server on its core."""
    command = ["node", "server.js"] if kind == "node ws" else [sys.executable, "-c", _SERVE, kind]
    where = folder if kind == "node ws" else None
    with subprocess.Popen(
        pinned(SERVER_CORE, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=where
    ) as process:
        try:
            yield RivalServer(process, int(_line(process.stdout)))
        finally:
            process.kill()


def npm() -> str | None:
    """Return where npm is, if it is there."""
    return shutil.which("npm")


def node_ready(folder: Path) -> bool:
    """Put Node's server and its library into `folder`; False where there is no npm."""
    if not npm():
        return False
    shutil.copy(HERE / "server.js", folder)
    subprocess.run(
        ["npm", "install", "--silent", "--prefix", str(folder), NODE_WS], check=True, stdout=subprocess.DEVNULL
    )
    return True


class Audience:
    """Subscribers in a process of their own; a context manager that waits until all have subscribed."""

    def __init__(self, task: Task) -> None:
        command = [
            "taskset",
            "-c",
            others(),
            sys.executable,
            "-c",
            "from bench.fanout import audience; audience.main()",
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None, "it is a pipe"
        self.process.stdin.write(json.dumps(asdict(task)) + "\n")
        self.process.stdin.flush()

    def __enter__(self) -> Self:
        assert _line(self.process.stdout) == "ready\n", "it says so once"
        return self

    def outcome(self) -> Outcome:
        """Wait until all have everything."""
        return Outcome(**json.loads(_line(self.process.stdout)))

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

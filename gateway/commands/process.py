"""A gateway in a process of its own, for the demo, the benchmarks and the tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self


class GatewayProcess:
    """`hotindex serve`, started on free ports unless `flags` say otherwise; a context manager that ends it."""

    def __init__(
        self,
        data_dir: Path,
        flags: Sequence[str] = (),
        log: IO[bytes] | int | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """`log` takes what the gateway writes to standard error (None: this process's own); `prefix` is a command that
        runs another.
        """
        ports = [] if "--ws-port" in flags else ["--ws-port", "0", "--http-port", "0"]
        command = [*prefix, sys.executable, "-m", "gateway", "serve", "--data-dir", str(data_dir), *ports, *flags]
        # A session of its own: Ctrl-C is for the parent, which ends the gateway when it has finished with it.
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        self.ws = self.http = ""

    def __enter__(self) -> Self:
        """Wait until it serves. Raises RuntimeError if it ends instead."""
        assert self.process.stdout is not None, "standard output is a pipe"
        ready = self.process.stdout.readline().decode().split()
        if ready[:1] != ["ready"]:
            raise RuntimeError(f"the gateway ended with status {self.process.wait()}")
        _, self.ws, self.http = ready
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, within_s: float = 30.0) -> int:
        """End it cleanly; return its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(within_s)
        finally:
            self._reap()

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self._reap()

    def _reap(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

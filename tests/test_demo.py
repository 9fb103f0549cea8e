"""The demo and the Procfile, as a stranger starts them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.clients.test_client import free_port

ROOT = Path(__file__).parent.parent


def test_the_demo_ends_by_itself_with_everything_received() -> None:
    command = [sys.executable, "-m", "hotindex", "demo", "--seconds", "4"]
    ports = ["--ws-port", str(free_port()), "--http-port", str(free_port())]
    run = subprocess.run([*command, *ports], capture_output=True, text=True, timeout=55, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    summary = re.search(r"events +(\d+) sent, (\d+) acknowledged, (\d+) received in the room", run.stdout)
    assert summary is not None, run.stdout
    sent, acknowledged, received = map(int, summary.groups())
    assert sent == acknowledged == received > 400
    assert "loaded            31245 movies" in run.stdout
    assert re.search(r"sent → room +p50 [\d.]+ ms, p99 [\d.]+ ms", run.stdout)
    assert re.search(r"\((\d+) of \1 new vectors found", run.stdout)


def test_honcho_runs_the_procfile(tmp_path: Path) -> None:
    """Gateway and Redis come up, and go down together."""
    for name in ("Procfile", ".venv"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    if not (tmp_path / ".venv").exists():
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/hotindex").symlink_to(Path(sys.executable).parent / "hotindex")
    http, redis = free_port(), free_port()
    environment = {
        **os.environ,
        "HOTINDEX_HTTP_PORT": str(http),
        "HOTINDEX_WS_PORT": "0",
        "REDIS_PORT": str(redis),
    }
    assert shutil.which("redis-server"), "make test installs it"
    command = [sys.executable, "-m", "honcho", "start"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as honcho:
        try:
            wait_for(lambda: urllib.request.urlopen(f"http://127.0.0.1:{http}/readyz").status == 200)
            wait_for(lambda: ping_redis(redis) == b"+PONG\r\n")
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/v1/collections") as response:
                assert json.load(response) == {"collections": []}
        finally:
            honcho.terminate()
            assert honcho.wait(20) in {0, 143, -15}


def ping_redis(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(100)


def wait_for(condition: object) -> None:
    assert callable(condition)
    while True:
        try:
            if condition():
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.05)

"""`hotindex serve` as a process: its settings, its one line, and what it says when it can't start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import hotindex
import pytest

from gateway.commands.process import GatewayProcess

SERVE = [sys.executable, "-m", "gateway", "serve"]


def serve(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a gateway that can't start."""
    return subprocess.run(
        [*SERVE, *flags], capture_output=True, text=True, timeout=30, env={**os.environ, **environment}, check=False
    )


def refused(run: subprocess.CompletedProcess[str]) -> str:
    """Return the one line it ended with."""
    assert run.returncode != 0
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("hotindex: ")
    return line


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_it_says_when_it_is_ready_and_ends_with_zero(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with GatewayProcess(tmp_path / "data") as gateway:
            assert gateway.ws.startswith("ws://127.0.0.1:")
            with urllib.request.urlopen(f"{gateway.http}/readyz") as response:
                assert response.status == 200
            gateway.process.send_signal(number)
            assert gateway.process.wait(20) == 0
            assert gateway.process.stdout is not None
            assert gateway.process.stdout.read() == b"", "one line on standard output"


def test_logs_are_json_on_standard_error(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, GatewayProcess(tmp_path / "data", log=log) as gateway:
        gateway.stop()
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert events == ["serving", "stopping", "stopped"]


def test_a_client_that_breaks_off_is_no_fault_and_leaves_no_text_in_the_log(tmp_path: Path) -> None:
    """A traceback with the frames' variables had the body in it."""
    log = (tmp_path / "log").open("wb")
    with log, GatewayProcess(tmp_path / "data", [], log) as gateway:
        host, port = gateway.http.removeprefix("http://").split(":")
        head = b"POST /v1/collections/c/documents HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head + b'{"id":"1","content":"private')
        with urllib.request.urlopen(f"{gateway.http}/healthz") as answer:
            assert answer.status == 200
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {line["level"] for line in lines} == {"info"}
    assert "private" not in (tmp_path / "log").read_text()


def test_tracebacks_have_no_variables() -> None:
    program = """
from gateway import logs
from gateway.faults import internal

logs.configure("info", "json")
key = "sk-" + "secret"
try:
    raise RuntimeError(f"a fault beside a key of {len(key)} characters")
except RuntimeError as error:
    internal(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "a fault beside a key of 9 characters" in run.stderr
    assert "sk-secret" not in run.stderr


def test_settings_by_flag_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "hotindex.toml"
    config.write_text('node = "file"\nping_interval_s = 7.5\ndefault_collection = "file"\n')
    monkeypatch.setenv("HOTINDEX_NODE", "environment")
    monkeypatch.setenv("HOTINDEX_DEFAULT_COLLECTION", "environment")
    with GatewayProcess(tmp_path / "data", ["--config", str(config), "--default-collection", "flag"]) as gateway:
        import websockets.sync.client

        with websockets.sync.client.connect(gateway.ws) as connection:
            greeting = json.loads(connection.recv())
            assert (greeting["node"], greeting["ping_interval_s"]) == ("environment", 7.5)
            connection.send(json.dumps({"action": "upsert", "id": "a", "vector": [1, 0]}))
            assert json.loads(connection.recv())["collection"] == "flag"


def test_help_names_every_setting() -> None:
    run = subprocess.run([*SERVE, "--help"], capture_output=True, text=True, check=True)
    for flag in (
        "--host",
        "--ws-port",
        "--http-port",
        "--data-dir",
        "--config",
        "--snapshot-interval-s",
        "--hot-limit",
    ):
        assert flag in run.stdout


def test_a_port_in_use(tmp_path: Path, taken_port: int) -> None:
    data = str(tmp_path / "data")
    line = refused(serve("--data-dir", data, "--ws-port", str(taken_port), "--http-port", "0"))
    assert line == f"hotindex: port {taken_port} on 127.0.0.1 is in use"
    line = refused(serve("--data-dir", data, "--ws-port", "0", "--http-port", str(taken_port)))
    assert line == f"hotindex: port {taken_port} on 127.0.0.1 is in use"


def test_a_data_directory_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refused(serve("--data-dir", str(tmp_path / "file" / "data")))
    assert "can't be written" in line
    assert str(tmp_path / "file" / "data") in line


def test_a_data_directory_in_use(tmp_path: Path) -> None:
    with GatewayProcess(tmp_path / "data", ["--log-level", "error"]):
        line = refused(serve("--data-dir", str(tmp_path / "data"), "--ws-port", "0", "--http-port", "0"))
    assert "in use by another hotindex process" in line


def test_a_broken_collection(tmp_path: Path) -> None:
    with GatewayProcess(tmp_path / "data", ["--log-level", "error"]) as gateway:
        request = urllib.request.Request(f"{gateway.http}/v1/collections/m", data=b'{"dimension":2}', method="PUT")
        urllib.request.urlopen(request).close()
    (tmp_path / "data/collections/m/store.db").write_bytes(b"garbage" * 100)
    shutil.rmtree(tmp_path / "data/collections/m/store.db-wal", ignore_errors=True)
    line = refused(serve("--data-dir", str(tmp_path / "data"), "--ws-port", "0", "--http-port", "0"))
    assert "collection 'm' can't be opened" in line


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        (["--colour", "red"], {}, "--colour"),
        (["--ws-port", "many"], {}, "ws_port is 'many'"),
        (["--ws-port", "70000"], {}, "ws_port is '70000'"),
        (["--default-collection", "../x"], {}, "default_collection"),
        (["--log-level", "loud"], {}, "log_level is 'loud'"),
        ([], {"HOTINDEX_COLOUR": "red"}, "HOTINDEX_COLOUR"),
        ([], {"HOTINDEX_HTTP_PORT": "x"}, "http_port is 'x'"),
        (["--config", "/nowhere.toml"], {}, "/nowhere.toml"),
        (["surplus"], {}, "surplus"),
    ],
)
def test_a_setting_that_is_wrong(tmp_path: Path, flags: list[str], environment: dict[str, str], words: str) -> None:
    assert words in refused(serve("--data-dir", str(tmp_path / "data"), *flags, **environment))


@pytest.mark.parametrize(
    ("text", "words"),
    [("colour = 1", "unknown setting 'colour'"), ("ws_port = 'x'", "ws_port is 'x'"), ("= broken", "no TOML")],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    assert words in refused(serve("--config", str(tmp_path / "c.toml")))


def test_limits_that_contradict_each_other(tmp_path: Path) -> None:
    line = refused(serve("--data-dir", str(tmp_path / "data"), "--hot-limit", "50"))
    assert "hot_limit is 50" in line


def test_what_is_no_collection_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "data/collections").mkdir(parents=True)
    (tmp_path / "data/collections/.DS_Store").write_text("")
    (tmp_path / "data/collections/notes.txt").write_text("")
    with GatewayProcess(tmp_path / "data", ["--log-level", "error"]) as gateway:
        assert gateway.stop() == 0


def test_it_ends_though_a_subscriber_does_not_read(tmp_path: Path) -> None:
    with (
        GatewayProcess(tmp_path / "data", ["--log-level", "error"]) as gateway,
        hotindex.sync.Client(gateway.ws) as client,
    ):
        client.upsert("m", id="a", vector=[1.0, 0.0])
        host, port = gateway.ws.removeprefix("ws://").split(":")
        with socket.create_connection((host, int(port))) as deaf:
            deaf.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert b"101" in deaf.recv(1024)
            subscribe = b'{"action":"subscribe","collection":"m"}'
            deaf.sendall(bytes([0x81, 0x80 | len(subscribe), 0, 0, 0, 0]) + subscribe)
            for i in range(40):
                client.upsert("m", id="a", metadata={"x": f"{i}" * 200_000})
            gateway.process.terminate()
            assert gateway.process.wait(20) == 0


def test_a_hundred_small_collections_side_by_side(tmp_path: Path) -> None:
    """They share threads, and none of them writes a snapshot or keeps a graph for a handful of documents."""
    with (
        GatewayProcess(tmp_path / "data", ["--log-level", "error"]) as gateway,
        hotindex.sync.Client(gateway.ws) as client,
    ):
        before = resident_bytes(gateway.process.pid)
        for number in range(100):
            client.upsert(f"c{number}", [hotindex.Document(f"d{i}", [float(i), 1.0]) for i in range(20)])
            client.search(f"c{number}", vector=[1.0, 1.0])
        assert len(list(Path(f"/proc/{gateway.process.pid}/task").iterdir())) < 20
        assert len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir())) < 100 * 10
        assert resident_bytes(gateway.process.pid) - before < 100 * (1 << 20)
        assert gateway.stop() == 0
    assert not list((tmp_path / "data").rglob("graph-*"))
    with (
        GatewayProcess(tmp_path / "data", ["--log-level", "error"]) as gateway,
        hotindex.sync.Client(gateway.ws) as client,
    ):
        assert {client.search(f"c{number}", vector=[1.0, 1.0], k=1).hits[0].id for number in range(100)} == {"d1"}


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096

"""The examples do what they say."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hotindex
import pytest

from bench import provider
from gateway.commands.process import GatewayProcess

EXAMPLES = Path(__file__).parents[2] / "clients/examples"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("examples") / "data", ["--log-level", "error"]) as running:
        yield running


def run(name: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()


def lines_of(name: str, count: int, *arguments: str) -> list[str]:
    """Return the first lines of an example that goes on until it is stopped."""
    command = [sys.executable, "-u", str(EXAMPLES / name), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().rstrip() for _ in range(count)]
        process.kill()
    return lines


def test_quickstart(gateway: GatewayProcess) -> None:
    for _ in range(2):
        found, told = run("quickstart.py", gateway.ws)
        assert found == "found: A crew travels through a wormhole to save mankind"
        assert told.startswith("told:  update 2 {'seen_at': ")


def test_synchronous(gateway: GatewayProcess) -> None:
    lines = run("synchronous.py", gateway.ws)
    assert "s1 {'price': 90}" in lines[0]
    assert len(lines) == 4


def test_follow_goes_on_where_it_was(gateway: GatewayProcess, tmp_path: Path) -> None:
    arguments = (gateway.ws, "followed", str(tmp_path / "position"))
    with hotindex.sync.Client(gateway.ws) as client:
        client.upsert("followed", [hotindex.Document("a", [1, 0]), hotindex.Document("b", [1, 0])])
        first = ["start over: everything follows", "1 insert a {}", "2 insert b {}"]
        assert lines_of("follow.py", 3, *arguments) == first
        client.upsert("followed", id="c", vector=[1, 0])
        client.upsert("followed", id="d", vector=[1, 0])
        again = lines_of("follow.py", 2, *arguments)
        # The last line before the kill may come once more: its position is written after it.
        assert again in (["2 insert b {}", "3 insert c {}"], ["3 insert c {}", "4 insert d {}"])


def test_plain_websocket(gateway: GatewayProcess) -> None:
    with hotindex.sync.Client(gateway.ws) as client:
        client.upsert("plain", id="a", vector=[1, 0])
    kinds = [eval(line)["type"] for line in lines_of("plain_websocket.py", 4, gateway.ws, "plain")]
    assert kinds == ["connected", "subscribed", "reset", "index_update"]


def test_plain_http(gateway: GatewayProcess) -> None:
    upserted, metadata, found, deleted, missing = map(eval, run("plain_http.py", gateway.http))
    assert upserted["results"][0]["status"] == "inserted"
    assert metadata == {"price": 12.5}
    assert found["results"][0]["id"] == "item-1"
    assert deleted["results"][0]["status"] == "deleted"
    assert missing["code"] == "not_found"


def test_transaction(gateway: GatewayProcess) -> None:
    for order, event, version in (("inserted", "insert", 1), ("updated", "update", 3)):
        applied, told, refused, desk = run("transaction.py", gateway.ws)
        assert applied == f"applied: [('lamp', 'updated'), ('order 1', '{order}')]"
        assert told == f"told:    ['update', '{event}', 'batch_complete']"
        assert refused == f"refused: document 'lamp' has version {version + 1}, not {version}"
        assert desk == "desk:    {'stock': 1}"
    with hotindex.sync.Client(gateway.ws) as client, pytest.raises(hotindex.NotFound):
        client.get("orders", "order 2")


def test_delta(gateway: GatewayProcess) -> None:
    for _ in range(2):
        price, name, refused, end = run("delta.py", gateway.ws)
        assert price == "price changed: 80 | the vector too: False"
        assert name == (
            "name changed: {'name': 'Mountain boot', 'category': 'Shoes', 'price': 80} | the vector too: True"
        )
        assert refused.startswith("refused: written for version ")
        assert end == "in the end: {'name': 'Mountain boot', 'category': 'Shoes', 'price': 70}"


def test_watch(gateway: GatewayProcess) -> None:
    with hotindex.sync.Client(gateway.ws) as client:
        texts = {"1": "A fisherman fights a giant marlin alone at sea", "2": "Two chefs open a restaurant in Naples"}
        client.upsert("watched", [hotindex.Document(key, content=text) for key, text in texts.items()])
        command = [sys.executable, "-u", str(EXAMPLES / "watch.py"), gateway.ws, "watched"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = [process.stdout.readline().split() for _ in range(3)]
            client.upsert("watched", id="3", content="A storm at sea")
            second = [process.stdout.readline().split() for _ in range(4)]
            client.delete("watched", "3")
            third = [process.stdout.readline().split() for _ in range(3)]
            process.kill()
    assert [line[1:] for line in first[1:]] == [["1", "{}", "new"], ["2", "{}", "new"]]
    assert [line[1:] for line in second[1:]] == [["3", "{}", "new"], ["1", "{}"], ["2", "{}"]]
    assert third[0] == ["at", "index_version", "4,", "gone:", "['3']"]


def test_recommendations(gateway: GatewayProcess) -> None:
    wanted = ["like mars", "purchase wormhole", "hide station", "like storm"]
    done: list[str] = []
    listed: list[str] = []
    command = [sys.executable, "-u", str(EXAMPLES / "recommendations.py"), gateway.ws]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while done != wanted or set(listed) != {"marlin", "island", "naples"}:
            line = process.stdout.readline()
            if line.startswith(" "):
                listed = ast.literal_eval(line.partition(": ")[2])
                assert len(listed) == 3
            else:
                done.append(line.rstrip())
                assert done == wanted[: len(done)]
        process.kill()


async def test_provider(tmp_path: Path) -> None:
    """Its configuration, but for the address of the service."""
    async with provider.running(dimension=768) as service:
        config = (
            (EXAMPLES / "provider.toml")
            .read_text()
            .replace('preset = "ollama"', f'url = "{service.url}"\npreset = "ollama"')
        )
        assert service.url in config
        (tmp_path / "provider.toml").write_text(config)
        flags = ["--log-level", "error", "--config", str(tmp_path / "provider.toml")]
        with GatewayProcess(tmp_path / "data", flags) as gateway:
            for _ in range(2):
                lines = await asyncio.to_thread(run, "provider.py", "nomic", gateway.ws, gateway.http)
                assert len(lines) == 2
        assert (
            sum(len(texts) for texts in service.texts) == len({text for texts in service.texts for text in texts}) == 4
        )
        assert {asked.body["model"] for asked in service.requests} == {"nomic-embed-text"}

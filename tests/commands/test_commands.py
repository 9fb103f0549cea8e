"""The client's subcommands against a running gateway."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hotindex.sync import Client

from gateway.commands.process import GatewayProcess

MOVIES = [
    {"id": "1", "name": "A boat on the ocean", "year": 1990},
    {"id": "2", "name": "A spaceship near Mars", "year": 2001},
    {"id": "3", "content": "Cooking pasta", "metadata": {"year": 2010}},
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("commands") / "data", ["--log-level", "error"]) as running:
        yield running


def hotindex(gateway: GatewayProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hotindex", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "HOTINDEX_URL": gateway.ws, "HOTINDEX_HTTP_URL": gateway.http, "COLUMNS": "200"},
        check=False,
    )


def write(path: Path, *lines: str) -> Path:
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write("\n".join(lines))
    return path


@pytest.mark.parametrize("name", ["movies.jsonl", "movies.jsonl.gz"])
def test_load_and_search(gateway: GatewayProcess, tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, *map(json.dumps, MOVIES), "")
    loaded = hotindex(gateway, "load", str(file), "-c", "films", "--batch", "2")
    assert (loaded.returncode, loaded.stdout.splitlines()[-1]) == (0, "3 documents loaded into films")
    found = hotindex(gateway, "search", "films", "sailing the sea", "-k", "2")
    assert found.returncode == 0
    assert "A boat on the ocean" in found.stdout.splitlines()[2]
    found = hotindex(gateway, "search", "films", "sailing the sea", "--json", "--filter", '{"year": {"$gt": 1995}}')
    hits = [json.loads(line) for line in found.stdout.splitlines()]
    assert {hit["id"] for hit in hits} == {"2", "3"}
    assert all(isinstance(hit["score"], float) for hit in hits)


def test_tail_shows_updates_as_they_come(gateway: GatewayProcess, tmp_path: Path) -> None:
    hotindex(gateway, "load", str(write(tmp_path / "a.jsonl", json.dumps(MOVIES[0]))), "-c", "tailed")
    command = [sys.executable, "-m", "hotindex", "tail", "tailed", "--since", "0", "--json", "--url", gateway.ws]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        assert json.loads(tail.stdout.readline())["event_type"] == "reset"
        first = json.loads(tail.stdout.readline())
        assert (first["document_id"], first["metadata"]["year"]) == ("1", 1990)
        hotindex(gateway, "load", str(write(tmp_path / "b.jsonl", json.dumps(MOVIES[1]))), "-c", "tailed")
        assert json.loads(tail.stdout.readline())["document_id"] == "2"
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10) == 130
    with subprocess.Popen(command[:-3] + command[-2:], stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        assert "reset" in tail.stdout.readline()
        assert "insert" in (line := tail.stdout.readline())
        assert "A boat on the ocean" in line
        tail.terminate()


def test_watch_shows_the_answer_as_it_changes(gateway: GatewayProcess, tmp_path: Path) -> None:
    hotindex(gateway, "load", str(write(tmp_path / "a.jsonl", *map(json.dumps, MOVIES[:2]))), "-c", "watched")
    sea = {"id": "4", "name": "A storm at sea", "year": 2020}
    command = [sys.executable, "-m", "hotindex", "watch", "watched", "a storm at sea", "-k", "2", "--url", gateway.ws]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
        hotindex(gateway, "load", str(write(tmp_path / "b.jsonl", json.dumps(sea))), "-c", "watched")
        second = json.loads(watch.stdout.readline())
        watch.send_signal(signal.SIGINT)
        assert watch.wait(10) == 130
    assert [match["id"] for match in first["results"]] == ["1", "2"]
    assert ([match["id"] for match in second["added"]], second["removed"]) == (["4"], ["2"])
    assert [match["id"] for match in second["results"]] == ["4", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert "watched at index_version" in watch.stdout.readline()
        watch.terminate()


def test_what_is_recommended_to_a_user_is_searched_for_and_watched(gateway: GatewayProcess, tmp_path: Path) -> None:
    hotindex(gateway, "load", str(write(tmp_path / "a.jsonl", *map(json.dumps, MOVIES))), "-c", "recommended")
    command = ["recommended", "--user", "ann", "-k", "2"]
    watching = [sys.executable, "-m", "hotindex", "watch", *command, "--json", "--url", gateway.ws]
    with Client(gateway.ws) as client, subprocess.Popen(watching, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
        seen = first["results"][0]["id"]
        client.interact("ann", "purchase", seen, collection="recommended")
        second = json.loads(watch.stdout.readline())
        watch.send_signal(signal.SIGINT)
        assert watch.wait(10) == 130
    assert (len(first["results"]), second["user_id"], second["removed"]) == (2, "ann", [seen])
    assert {one["id"] for one in second["results"]} == {"1", "2", "3"} - {seen}
    assert all(one["metadata"]["year"] for one in second["results"])
    found = hotindex(gateway, "search", *command, "--json")
    hits = [json.loads(line) for line in found.stdout.splitlines()]
    assert [hit["id"] for hit in hits] == [one["id"] for one in second["results"]]
    shown = hotindex(gateway, "search", *command).stdout.splitlines()
    assert [line.split()[1] for line in shown[-len(hits) :]] == [hit["id"] for hit in hits]


def test_snapshot(gateway: GatewayProcess, tmp_path: Path) -> None:
    hotindex(gateway, "load", str(write(tmp_path / "a.jsonl", json.dumps(MOVIES[0]))), "-c", "kept")
    done = hotindex(gateway, "snapshot", "kept", "--http-url", gateway.http)
    assert (done.returncode, done.stdout) == (0, "snapshot of kept at index_version 1 written\n")
    missing = hotindex(gateway, "snapshot", "nowhere", "--http-url", gateway.http)
    assert (missing.returncode, missing.stderr) == (1, "hotindex: not_found: no collection 'nowhere'\n")


WEBSOCKET = "it takes the WebSocket address, ws:// or wss://"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["search", "nowhere", "text"], 1, "not_found: no collection 'nowhere'"),
        (["search", "films", "text", "--filter", "{"], 2, "no JSON"),
        (["search", "films", "text", "--filter", "[]"], 2, "must be a JSON object"),
        (["search", "films", "text", "-k", "0"], 1, "k is 0"),
        (["search", "films", "text", "--url", "ws://127.0.0.1:1"], 1, "can't connect"),
        (["search", "films", "text", "--url", "http://h:8080"], 2, f"--url is 'http://h:8080': {WEBSOCKET}"),
        (["watch", "films", "text", "--url", "http://h:8080"], 2, f"--url is 'http://h:8080': {WEBSOCKET}"),
        (["tail", "films", "--url", "127.0.0.1:8765"], 2, f"--url is '127.0.0.1:8765': {WEBSOCKET}"),
        (["load", __file__, "-c", "x", "--url", ""], 2, f"--url is '': {WEBSOCKET}"),
        (["watch", "nowhere", "text"], 1, "not_found: no collection 'nowhere'"),
        (["search", "films"], 2, "TEXT or --user, one of them"),
        (["search", "films", "text", "--user", "ann"], 2, "and not both"),
        (["search", "nowhere", "--user", "ann"], 1, "not_found: no collection 'nowhere'"),
        (["watch", "films"], 2, "TEXT or --user, one of them"),
        (["watch", "films", "text", "--user", "ann"], 2, "and not both"),
        (["watch", "nowhere", "--user", "ann"], 1, "not_found: no collection 'nowhere'"),
        (["load", "/nowhere.jsonl", "-c", "x"], 2, "/nowhere.jsonl"),
        (["fly"], 2, "fly"),
    ],
)
def test_errors_are_one_line(gateway: GatewayProcess, arguments: list[str], status: int, words: str) -> None:
    if "-k" in arguments:
        hotindex(gateway, "search", "films", "text")
    run = hotindex(gateway, *arguments)
    (line,) = run.stderr.splitlines()
    assert (run.returncode, line.startswith("hotindex: ")) == (status, True)
    assert words in line


@pytest.mark.parametrize("command", ["search", "watch"])
def test_help_calls_the_text_what_the_option_for_a_user_calls_it(gateway: GatewayProcess, command: str) -> None:
    shown = hotindex(gateway, command, "--help").stdout
    (argument,) = (line for line in shown.splitlines() if "What to look for" in line)
    assert argument.split()[0] == "TEXT"
    assert "Instead of TEXT" in shown


def test_stats_show_what_models_were_asked_and_spared(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *map(json.dumps, MOVIES))
    with GatewayProcess(tmp_path / "data", ["--log-level", "error"]) as gateway:
        for _ in range(2):
            assert hotindex(gateway, "load", str(file), "-c", "films").returncode == 0
        stats = json.loads(hotindex(gateway, "stats", "--json").stdout)
        shown = hotindex(gateway, "stats").stdout
    (model,) = stats["models"]
    assert (model["name"], model["texts"], model["saved_texts"]) == ("static-minilm-256", len(MOVIES), len(MOVIES))
    (films,) = stats["collections"]
    assert (films["documents"], films["unchanged_texts"], films["found_texts"]) == (len(MOVIES), len(MOVIES), 0)
    assert "static-minilm-256" in shown
    assert "films" in shown

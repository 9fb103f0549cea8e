"""`hotindex watch` against a server that pushes what a test says."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.clients.scripted import Scripted, item, scripted


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted() as running:
        running.answer = [item("b", 0.8, name="A boat"), item("a", 0.9, name="The sea")]
        yield running


@asynccontextmanager
async def watching(
    server: Scripted, *flags: str, what: tuple[str, ...] = ("sailing",), stdout: int = asyncio.subprocess.PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "hotindex", "watch", "m", *what, "--url", server.url, *flags]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    started = await asyncio.create_subprocess_exec(*command, stdout=stdout, env=env)
    try:
        await server.until_watched(1)
        yield started
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


async def interrupted(process: asyncio.subprocess.Process) -> int:
    process.send_signal(signal.SIGINT)
    return await asyncio.wait_for(process.wait(), 10)


async def lines(process: asyncio.subprocess.Process, count: int) -> list[str]:
    assert process.stdout is not None
    return [(await process.stdout.readline()).decode().rstrip() for _ in range(count)]


async def test_json_is_a_change_a_line(server: Scripted) -> None:
    async with watching(server, "--json", "-k", "3", "--filter", '{"year": 1990}') as process:
        first = json.loads((await lines(process, 1))[0])
        await server.push(added=[item("c", 0.85)], changed=[item("a", 0.7)], removed=["b"])
        second = json.loads((await lines(process, 1))[0])
        assert await interrupted(process) == 130
    assert [match["id"] for match in first["added"]] == ["a", "b"]
    assert second == {
        "index_version": 2,
        "added": [item("c", 0.85)],
        "changed": [item("a", 0.7)],
        "removed": ["b"],
        "results": [item("c", 0.85), item("a", 0.7)],
    }
    (asked,) = server.watched
    assert (asked["text"], asked["k"], asked["filter"]) == ("sailing", 3, {"year": 1990})
    assert server.unwatched == ["w1"]


async def test_without_a_terminal_each_change_is_a_block_of_lines(server: Scripted) -> None:
    async with watching(server) as process:
        first = await lines(process, 4)
        await server.push(removed=["b"])
        second = await lines(process, 3)
        await server.push(removed=["a"])
        empty = await lines(process, 2)
        assert await interrupted(process) == 130
    assert first[0] == "m at index_version 1"
    assert [line.split()[:2] for line in first[1:]] == [["score", "id"], ["0.900", "a"], ["0.800", "b"]]
    assert second[0] == "m at index_version 2"
    assert second[2].split(maxsplit=2) == ["0.900", "a", '{"name":"The sea"}']
    assert empty == ["m at index_version 3: nothing found", " score  id  metadata"]


async def test_on_a_terminal_the_list_is_drawn_again_in_place(server: Scripted) -> None:
    terminal, its_end = pty.openpty()
    try:
        async with watching(server, stdout=its_end) as process:
            drawn = await read_until(terminal, "A boat")
            await server.push(added=[item("c", 0.85, name="A lake")], removed=["b"])
            again = await read_until(terminal, "A lake")
            assert await interrupted(process) == 130
    finally:
        os.close(its_end)
        os.close(terminal)
    assert "m at index_version 1" in drawn
    up = "\x1b[1A"
    assert again.index(up) < again.index("m at index_version 2")
    assert again.count(up) == 3


USER = ("--user", "ann")


async def test_json_of_a_user_is_a_list_a_line_with_what_its_items_are(server: Scripted) -> None:
    async with watching(server, "--json", "-k", "3", "--filter", '{"year": 1990}', what=USER) as process:
        first = json.loads((await lines(process, 1))[0])
        server.metadata["c"] = {"name": "A lake"}
        await server.recommend("ann", {"c": 0.5, "gone": 0.3, "a": 0.2})
        second = json.loads((await lines(process, 1))[0])
        assert await interrupted(process) == 130
    assert [one["id"] for one in first["results"]] == ["b", "a"], "the gateway's order"
    new = [item("c", 0.5, name="A lake"), item("gone", 0.3)]
    listed = [*new, item("a", 0.2, name="The sea")]
    assert second == {"user_id": "ann", "added": new, "removed": ["b"], "results": listed}
    (asked,) = server.watched
    assert (asked["user_id"], asked["k"], asked["filter"]) == ("ann", 3, {"year": 1990})
    assert "text" not in asked
    assert server.unwatched == ["w1"]


async def test_without_a_terminal_each_list_of_a_user_is_a_block_of_lines(server: Scripted) -> None:
    server.metadata["c"] = {"name": "A lake"}
    async with watching(server, what=USER) as process:
        first = await lines(process, 4)
        await server.recommend("ann", {"c": 0.5})
        second = await lines(process, 3)
        assert await interrupted(process) == 130
    assert (first[0], second[0]) == ("m for ann", "m for ann")
    assert [line.split()[:2] for line in first[1:]] == [["score", "id"], ["0.800", "b"], ["0.900", "a"]]
    assert second[2].split(maxsplit=2) == ["0.500", "c", '{"name":"A lake"}']


async def test_on_a_terminal_the_list_of_a_user_is_drawn_again_in_place(server: Scripted) -> None:
    server.metadata["c"] = {"name": "A lake"}
    terminal, its_end = pty.openpty()
    try:
        async with watching(server, what=USER, stdout=its_end) as process:
            await read_until(terminal, "A boat")
            await server.recommend("ann", {"c": 0.5, "a": 0.2})
            again = await read_until(terminal, "A lake")
            assert await interrupted(process) == 130
    finally:
        os.close(its_end)
        os.close(terminal)
    assert again.count("\x1b[1A") == 3


async def read_until(terminal: int, words: str) -> str:
    text = ""
    async with asyncio.timeout(10):
        while words not in text:
            text += (await asyncio.to_thread(os.read, terminal, 65_536)).decode()
    return text


@pytest.mark.parametrize(("flags", "status"), [((), 1), (("--filter", "["), 2)])
async def test_errors_are_one_line(server: Scripted, flags: tuple[str, ...], status: int) -> None:
    server.answer = "not_found"
    command = [sys.executable, "-m", "hotindex", "watch", "m", "sailing", "--url", server.url, *flags]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, complaint = await process.communicate()
    (line,) = complaint.decode().splitlines()
    assert (process.returncode, line.startswith("hotindex: ")) == (status, True)

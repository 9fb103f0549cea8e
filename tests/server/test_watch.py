"""Live queries, spoken with nothing but a WebSocket: what clients hold after each difference is the top k."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import numpy as np
import pytest

from gateway.app import Gateway
from gateway.node import watches
from gateway.node.watching import Watching
from tests.conftest import JsonMessage, JsonSocket, StartGateway, json_socket
from tests.server.test_slow import Closing
from tests.server.watchers import Model, Watcher, at, fill, put, some_write, watcher


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[Watcher]:
    async with watcher(gateway) as connected:
        yield connected


def watching(gateway: Gateway) -> Watching:
    return gateway.node.hosted("m").watching


async def test_the_first_answer_is_that_of_search(socket: JsonSocket, client: Watcher) -> None:
    await fill(socket)
    answer = await client.ask(action="watch", collection="m", vector=[1, 0], k=2)
    assert answer.pop("watch_id")
    assert answer == {
        "type": "watching",
        "collection": "m",
        "index_version": 30,
        "exact": False,
        "results": [
            {"id": "d00", "score": 1.0, "metadata": {"n": 0}},
            {"id": "d01", "score": pytest.approx(math.cos(0.05)), "metadata": {"n": 1}},
        ],
    }


async def test_an_insert_comes_in_and_pushes_another_out(socket: JsonSocket, client: Watcher) -> None:
    await fill(socket)
    watch_id = await client.watch(vector=[1, 0], k=3)
    await put(socket, "new", 0.07, x=1)
    assert await client.update() == {
        "type": "watch_update",
        "watch_id": watch_id,
        "index_version": 31,
        "added": [{"id": "new", "score": pytest.approx(math.cos(0.07)), "rank": 3, "metadata": {"x": 1}}],
        "changed": [],
        "removed": ["d02"],
    }


async def test_other_vectors_and_other_metadata_of_what_is_held_are_changes(
    socket: JsonSocket, client: Watcher
) -> None:
    await fill(socket)
    await client.watch(vector=[1, 0], k=3)
    await put(socket, "d00", 0.06, n=0)
    update = await client.update()
    assert [(item["id"], item["rank"]) for item in update["changed"]] == [("d00", 2)]
    assert (update["added"], update["removed"]) == ([], [])
    await socket.reply(action="patch", collection="m", id="d01", changes={"n": None, "y": 2})
    update = await client.update()
    assert [(item["id"], item["rank"], item["metadata"]) for item in update["changed"]] == [("d01", 1, {"y": 2})]


async def test_what_does_not_change_the_answer_is_not_told(socket: JsonSocket, client: Watcher) -> None:
    await fill(socket)
    await client.watch(vector=[1, 0], k=3)
    await put(socket, "far", 3.0)
    await put(socket, "d20", 2.0, n=20)
    await put(socket, "near", 0.0)
    assert (await client.update())["index_version"] == 33


@pytest.mark.parametrize("exact", [False, True])
async def test_deletes_bring_the_next_and_are_searched_for_again_when_none_is_held(
    socket: JsonSocket, client: Watcher, exact: bool
) -> None:
    await fill(socket, 60)
    watch_id = await client.watch(vector=[1, 0], k=2, exact=exact)
    for i in range(50):
        await socket.reply(action="delete", collection="m", id=f"d{i:02}")
        while client.ids(watch_id) != [f"d{i + 1:02}", f"d{i + 2:02}"]:
            await client.update()
    await socket.reply(action="delete", collection="m", ids=[f"d{i:02}" for i in range(50, 59)])
    while client.ids(watch_id) != ["d59"]:
        await client.update()


async def test_documents_come_into_filters_and_leave_them(socket: JsonSocket, client: Watcher) -> None:
    await fill(socket)
    watch_id = await client.watch(vector=[1, 0], k=3, filter={"n": {"$gte": 10}})
    assert client.ids(watch_id) == ["d10", "d11", "d12"]
    await socket.reply(action="patch", collection="m", id="d05", changes={"n": 50})
    await client.update()
    assert client.ids(watch_id) == ["d05", "d10", "d11"]
    await socket.reply(action="patch", collection="m", id="d10", changes={"n": 1})
    await client.update()
    assert client.ids(watch_id) == ["d05", "d11", "d12"]


async def test_min_score_keeps_the_list_short(socket: JsonSocket, client: Watcher) -> None:
    await fill(socket)
    watch_id = await client.watch(vector=[1, 0], k=10, min_score=math.cos(0.12))
    assert client.ids(watch_id) == ["d00", "d01", "d02"]
    await put(socket, "beyond", 0.13)
    await put(socket, "within", 0.11)
    await client.update()
    assert client.ids(watch_id) == ["d00", "d01", "d02", "within"]
    await put(socket, "d00", 1.0)
    await client.update()
    assert client.ids(watch_id) == ["d01", "d02", "within"]


async def test_a_watch_waits_for_its_min_index_version(start_gateway: StartGateway) -> None:
    async with start_gateway(read_wait_s=0.05) as gateway, json_socket(gateway.ws) as socket:
        await fill(socket)
        await put(socket, "new", 0.5)
        head = (await socket.reply(action="search", collection="m", vector=[1, 0]))["index_version"]
        for who in ({"vector": [1, 0]}, {"user_id": "ann"}):
            how = {"action": "watch", "collection": "m", **who}
            assert (await socket.reply(**how, min_index_version=head))["index_version"] == head
            early = await socket.reply(**how, min_index_version=head + 1)
            assert (early["code"], early["field"]) == ("overloaded", "min_index_version")


async def test_a_watch_of_a_document_follows_its_vector(socket: JsonSocket, client: Watcher) -> None:
    await fill(socket)
    watch_id = await client.watch(id="d00", k=2)
    assert client.ids(watch_id) == ["d01", "d02"]
    await put(socket, "d00", 1.0)
    await client.update()
    assert client.ids(watch_id)[0] == "d20"
    await put(socket, "new", 1.01)
    await client.update()
    assert client.ids(watch_id) == ["d20", "new"]
    await socket.reply(action="delete", collection="m", id="d00")
    await put(socket, "newer", 1.0)
    await client.update()
    assert client.ids(watch_id) == ["d20", "newer"], "its last vector stays the query"
    await put(socket, "d00", 0.0)
    while client.ids(watch_id) != ["d01", "d02"]:
        await client.update()


async def test_the_last_vector_of_a_document_stays_the_query_however_soon_it_is_deleted(
    socket: JsonSocket, client: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read when it was searched for. Where the document was deleted by then, an older one stayed the query."""
    await fill(socket)
    watch_id = await client.watch(id="d00", k=2)
    searching, deleted = watches.search, threading.Event()

    def search(*given: Any) -> watches.Found:
        assert deleted.wait(30)
        return searching(*given)

    monkeypatch.setattr(watches, "search", search)
    await put(socket, "d00", 1.01)
    await socket.reply(action="delete", collection="m", id="d00")
    deleted.set()
    while client.ids(watch_id) != ["d20", "d21"]:
        await client.update()


async def test_a_watch_of_a_document_that_never_rests_is_told(
    socket: JsonSocket, client: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a search had found was thrown away where the document had another vector by then: it was told nothing at all."""
    await fill(socket, 60)
    watch_id = await client.watch(id="d00", k=5, exact=True)
    searching = watches.search

    def search(*given: Any) -> watches.Found:
        found = searching(*given)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(watches, "search", search)
    loop = asyncio.get_running_loop()
    until, i = loop.time() + 2, 0
    while loop.time() < until:
        i += 1
        await put(socket, "d00", i % 60 / 20 + 0.01)
    reading = asyncio.create_task(client.ask(action="search", collection="m", id="d00", k=5, exact=True))
    wanted = [item["id"] for item in (await reading)["results"]]
    assert len(client.updates) > 10, "while it changed"
    while client.ids(watch_id) != wanted:
        await client.update()


async def test_what_is_included_comes_with_every_item(socket: JsonSocket, client: Watcher) -> None:
    await fill(socket)
    await socket.reply(action="upsert", collection="m", id="d00", vector=at(0), content="the first")
    first = await client.ask(action="watch", collection="m", vector=[1, 0], k=2, include=["content", "vector"])
    assert first["results"] == [
        {"id": "d00", "score": 1.0, "metadata": {"n": 0}, "content": "the first", "vector": [1, 0]},
        {"id": "d01", "score": pytest.approx(math.cos(0.05)), "metadata": {"n": 1}, "vector": pytest.approx(at(0.05))},
    ]
    vectors_alone = await client.watch(vector=[1, 0], k=1, include=["vector"])
    content_alone = await client.watch(vector=[1, 0], k=1, include=["content"])
    await socket.reply(action="upsert", collection="m", id="new", vector=at(0.01), content="the second")
    update = await client.update()
    assert [item["content"] for item in update["added"]] == ["the second"]
    assert update["added"][0]["vector"] == pytest.approx(at(0.01))
    await socket.reply(action="upsert", collection="m", id="d00", vector=at(0.5), content="moved")
    for _ in range(3):
        await client.update()
    (shown,) = client.ranked(content_alone)
    assert (shown.pop("score") > 0.99, shown.pop("rank")) == (True, 1)
    assert shown == {"id": "new", "metadata": {}, "content": "the second"}
    (shown,) = client.ranked(vectors_alone)
    assert shown["vector"] == pytest.approx(at(0.01))
    assert "content" not in shown
    refused = await client.ask(action="watch", collection="m", vector=[1, 0], include=["everything"])
    assert (refused["code"], refused["field"]) == ("invalid_argument", "include[0]")


@pytest.mark.parametrize("binary", [False, True])
async def test_included_vectors_are_those_the_scores_are_of(gateway: Gateway, socket: JsonSocket, binary: bool) -> None:
    """Vectors are deleted when documents get others, which they do all the time here."""
    await fill(socket)
    async with watcher(gateway, binary=binary) as client:
        asked: list[JsonMessage] = [{"k": 5}, {"k": 10}, {"k": 5, "filter": {"n": {"$gte": 5}}}]
        how: JsonMessage = {"vector": [1, 0], "include": ["vector", "content"], "exact": True}
        ids = [await client.watch(**how, **one) for one in asked]
        rng = random.Random(3)

        async def write() -> None:
            some = rng.sample(range(30), 8)
            documents = [
                {"id": f"d{i:02}", "vector": at(rng.random()), "content": f"c{rng.random()}", "metadata": {"n": i}}
                for i in some
            ]
            assert (await socket.reply(action="upsert", collection="m", documents=documents))["type"] == "ack"

        writing = asyncio.create_task(_repeat(write, 150))
        seen = 0
        while not writing.done() or seen < 20:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    update = await client.update()
                    for item in (*update["added"], *update["changed"]):
                        seen += 1
                        vector = np.frombuffer(item["vector"], np.float32) if binary else np.array(item["vector"])
                        assert item["score"] == pytest.approx(float(vector[0]), abs=1e-5)
        await writing
        for watch_id, one in zip(ids, asked, strict=True):
            search = await client.ask(action="search", collection="m", **how, **one)
            wanted = [(item["id"], item["content"], item["vector"]) for item in search["results"]]
            while [(item["id"], item["content"], item["vector"]) for item in client.ranked(watch_id)] != wanted:
                await client.update()


async def test_a_text_is_embedded_and_watched(socket: JsonSocket, client: Watcher) -> None:
    for document_id, content in (("a", "red running shoes"), ("b", "a garden hose")):
        await socket.reply(action="upsert", collection="m", id=document_id, content=content)
    watch_id = await client.watch(text="running shoes", k=1)
    assert client.ids(watch_id) == ["a"]
    await socket.reply(action="upsert", collection="m", id="c", content="running shoes")
    await client.update()
    assert client.ids(watch_id) == ["c"]


async def test_nothing_comes_after_unwatch_and_other_watches_go_on(
    gateway: Gateway, socket: JsonSocket, client: Watcher
) -> None:
    await fill(socket)
    one, other = await client.watch(vector=[1, 0], k=3), await client.watch(vector=[0, 1], k=3)
    assert one != other
    await put(socket, "both", 0.0)
    assert (await client.update())["watch_id"] == one
    assert await client.ask(action="unwatch", watch_id=one) == {"type": "unwatched", "watch_id": one}
    await put(socket, "first", 0.0)
    await put(socket, "second", math.pi / 2)
    assert (await client.update())["watch_id"] == other
    await client.ask(action="unwatch", watch_id=other)
    assert len(watching(gateway)) == 0
    assert (await client.ask(action="unwatch", watch_id=other))["code"] == "not_found"


async def test_watches_end_with_their_connection(gateway: Gateway, socket: JsonSocket) -> None:
    await fill(socket)
    async with watcher(gateway) as client:
        await client.watch(vector=[1, 0])
        await client.watch(vector=[1, 0], filter={"n": 1})
        assert watching(gateway).wants_vectors
    async with asyncio.timeout(10):
        while len(watching(gateway)):
            await asyncio.sleep(0.01)
    assert not watching(gateway).wants_vectors
    await put(socket, "new", 0.0)


async def test_who_watches_a_dropped_collection_is_told(gateway: Gateway, socket: JsonSocket, client: Watcher) -> None:
    await fill(socket)
    watch_id = await client.watch(vector=[1, 0])
    async with aiohttp.ClientSession() as http, http.delete(f"{gateway.http}/v1/collections/m") as response:
        assert response.status == 200
    assert await client.receive() == {"type": "unwatched", "watch_id": watch_id, "collection": "m"}
    await fill(socket)
    assert client.ids(await client.watch(vector=[1, 0], k=1)) == ["d00"]


@pytest.mark.parametrize(
    ("command", "code", "field"),
    [
        ({}, "invalid_argument", "vector"),
        ({"vector": [1, 0], "id": "d00"}, "invalid_argument", "vector"),
        ({"vector": [1, 0, 0]}, "invalid_vector", "vector"),
        ({"vector": [0, 0]}, "invalid_vector", "vector"),
        ({"vector": [1, 0], "k": 0}, "invalid_argument", "k"),
        ({"vector": [1, 0], "k": 101}, "invalid_argument", "k"),
        ({"vector": [1, 0], "k": "many"}, "invalid_message", "k"),
        ({"vector": [1, 0], "filter": {"n": {"$near": 1}}}, "invalid_filter", None),
        ({"vector": [1, 0], "max_rate": 0}, "invalid_argument", "max_rate"),
        ({"id": "nobody"}, "not_found", "id"),
        ({"text": "shoes"}, "invalid_argument", "text"),
        ({"vector": [1, 0], "collection": "none"}, "not_found", "collection"),
    ],
)
async def test_bad_watches_are_refused(
    gateway: Gateway, socket: JsonSocket, client: Watcher, command: JsonMessage, code: str, field: str | None
) -> None:
    await fill(socket)
    answer = await client.ask(action="watch", **{"collection": "m", **command})
    assert (answer["type"], answer["code"]) == ("error", code)
    assert field is None or answer["field"] == field
    assert len(watching(gateway)) == 0


async def test_max_rate_gathers_changes(socket: JsonSocket, client: Watcher) -> None:
    await fill(socket)
    watch_id = await client.watch(vector=[1, 0], k=3, max_rate=0.5)
    loop = asyncio.get_running_loop()
    await put(socket, "a", 0.001)
    await client.update()
    told = loop.time()
    await put(socket, "b", 0.002)
    await put(socket, "c", 0.0005)
    update = await client.update()
    assert loop.time() - told > 1.9
    assert [item["id"] for item in update["added"]] == ["c"], "b came, and went again, in the meantime"
    assert client.ids(watch_id) == ["d00", "c", "a"]


async def test_who_does_not_read_is_told_together_and_exactly_what_it_missed(
    gateway: Gateway, socket: JsonSocket, client: Watcher
) -> None:
    await fill(socket)
    watch_id = await client.watch(vector=[1, 0], k=10)
    client.connection.transport.pause_reading()
    text = "t" * 20_000
    turn = stuck = 0
    while stuck < 20:  # the kernel's buffers may take another update after they seemed full
        turn += 1
        stuck = stuck + 1 if watching(gateway).behind else 0
        await put(socket, f"d{turn % 10:02}", turn % 10 / 20, text=text, turn=turn)
    ack = await put(socket, "mark", 3.0)
    for i in range(20):
        await put(socket, f"new{i}", i / 1000, text=text)
    last = await socket.reply(action="delete", collection="m", id="new0")
    client.connection.transport.resume_reading()
    while client.index_versions[watch_id] < last["index_version"]:
        await client.update()
    told = [update for update in client.updates if update["index_version"] > ack["index_version"]]
    assert len(told) <= 5, "of 21 changes; the kernel's buffers may have taken one or another at once"
    search = await client.ask(action="search", collection="m", vector=[1, 0], k=10, exact=True)
    assert client.ids(watch_id) == [item["id"] for item in search["results"]]


async def test_who_closes_a_full_connection_is_looked_at_no_more(
    gateway: Gateway, socket: JsonSocket, client: Watcher
) -> None:
    """A watch that was to be told then was looked at all the time until the connection was gone."""
    await fill(socket)
    async with watcher(gateway) as leaving:
        await leaving.watch(vector=[1, 0], k=3)
        (live,) = watching(gateway)._lives
        live.sink = sink = Closing()
        watch_id = await client.watch(vector=[1, 0], k=3)
        for name in ("one", "other"):
            await put(socket, name, 0.0)
            await client.update()
            assert name in client.ids(watch_id)
        assert sink.asked == 2, "once for each change"
    while len(watching(gateway)) > 1:
        await asyncio.sleep(0.01)


async def test_watches_are_counted(gateway: Gateway, socket: JsonSocket, client: Watcher) -> None:
    await fill(socket)
    await client.watch(vector=[1, 0], k=3)
    await client.watch(vector=[0, 1], k=3)
    await put(socket, "new", 0.0)
    await client.update()
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.http}/metrics") as response:
        lines = (await response.text()).splitlines()
    shown = {name: float(value) for name, _, value in (line.partition('{collection="m"} ') for line in lines) if value}
    assert shown["hotindex_watches"] == 2
    assert shown["hotindex_watches_behind"] == 0
    assert shown["hotindex_watches_passed_over_total"] == 0
    assert shown["hotindex_watch_searches_total"] == 2
    assert shown["hotindex_watch_updates_total"] == 1


async def test_commits_that_come_too_fast_are_passed_over_and_searched_for(
    gateway: Gateway, socket: JsonSocket, client: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(socket)
    monkeypatch.setattr(watching(gateway), "_waiting_bytes_limit", 1000)
    monkeypatch.setattr("gateway.node.watching._PAIRS_AT_ONCE", -1)
    one, other = await client.watch(vector=[1, 0], k=5), await client.watch(id="d00", k=5)
    released = threading.Event()
    applying = watches.apply

    def apply(*given: Any) -> watches.Turn:
        assert released.wait(30)
        return applying(*given)

    monkeypatch.setattr(watches, "apply", apply)
    for i in range(200):
        await put(socket, f"d{i % 40:02}", i * 0.37, i=i)
    assert watching(gateway).passed_over > 10
    released.set()
    for i in range(200):
        await put(socket, f"d{i % 40:02}", i * 0.73, i=-i)
    for watch_id, query in ((one, {"vector": [1, 0]}), (other, {"id": "d00"})):
        search = await client.ask(action="search", collection="m", k=5, exact=True, **query)
        wanted = [(item["id"], item["metadata"]) for item in search["results"]]
        while [(item["id"], item["metadata"]) for item in client.ranked(watch_id)] != wanted:
            await client.update()


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
async def test_every_list_is_the_top_k_at_its_index_version(
    gateway: Gateway, socket: JsonSocket, seed: int, binary: bool
) -> None:
    rng, model = random.Random(seed), Model()
    async with aiohttp.ClientSession() as http:
        settings = {"dimension": 6, "metric": "ip"}
        async with http.put(f"{gateway.http}/v1/collections/m", json=settings) as response:
            assert response.status == 201

    async def write() -> None:
        ack = await socket.reply(**some_write(rng, model), collection="m")
        assert ack["type"] == "ack", ack
        model.states[ack["index_version"]] = dict(model.documents)

    async with watcher(gateway, binary=binary) as client:
        for _ in range(30):
            await write()
        asked: dict[str, tuple[list[float], int, int | None]] = {}
        for i in range(12):
            vector, k, group = [rng.gauss(0, 1) for _ in range(6)], rng.choice((1, 3, 10)), i % 4 if i % 4 < 3 else None
            where: JsonMessage = {} if group is None else {"filter": {"group": group}}
            asked[await client.watch(vector=vector, k=k, exact=True, **where)] = (vector, k, group)
            await write()

        writing = asyncio.create_task(_repeat(write, 300))
        while not writing.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.update()
        await writing
        for watch_id, (vector, k, group) in asked.items():
            where = {} if group is None else {"filter": {"group": group}}
            search = await client.ask(action="search", collection="m", vector=vector, k=k, exact=True, **where)
            wanted = [(item["id"], item["metadata"]) for item in search["results"]]
            while [(item["id"], item["metadata"]) for item in client.ranked(watch_id)] != wanted:
                await client.update()
    assert len(client.told) > 100
    for watch_id, index_version, told in client.told:
        assert index_version in model.states
        top = model.top(index_version, *asked[watch_id])
        assert [document_id for document_id, _ in told] == [document_id for document_id, _ in top]
        assert [score for _, score in told] == pytest.approx([score for _, score in top], abs=1e-5)


async def _repeat(work: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        await work()

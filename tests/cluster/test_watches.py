"""Watches at a node that doesn't host the collection: a host's watches, told by the edge."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import numpy as np
import pytest
import websockets

from tests.cluster.nodes import Nodes, ask, edged, level, until
from tests.cluster.watched import Scene, eventually, watched
from tests.conftest import JsonMessage, json_socket
from tests.server.test_users import add_items, axis, did, recommended
from tests.server.watchers import Model, at, put, some_write, watcher


async def test_the_first_answer_and_what_changes(nodes: Nodes) -> None:
    async with watched(nodes) as scene:
        client = scene.client
        answer = await client.ask(action="watch", collection="m", vector=[1, 0], k=2)
        watch_id = answer["watch_id"]
        assert answer == {
            "type": "watching",
            "watch_id": watch_id,
            "collection": "m",
            "index_version": 30,
            "exact": False,
            "results": [
                {"id": "d00", "score": 1.0, "metadata": {"n": 0}},
                {"id": "d01", "score": pytest.approx(np.cos(0.05)), "metadata": {"n": 1}},
            ],
        }
        ack = await put(scene.socket, "new", 0.03, x=1)
        assert await client.update() == {
            "type": "watch_update",
            "watch_id": watch_id,
            "index_version": ack["index_version"],
            "added": [{"id": "new", "score": pytest.approx(np.cos(0.03)), "rank": 2, "metadata": {"x": 1}}],
            "changed": [],
            "removed": ["d01"],
        }
        await put(scene.socket, "new", 0.03, x=2)
        (changed,) = (await client.update())["changed"]
        assert changed == {"id": "new", "score": pytest.approx(np.cos(0.03)), "rank": 2, "metadata": {"x": 2}}
        ack = await scene.socket.reply(action="delete", collection="m", id="d00")
        await scene.exact(watch_id, ack, vector=[1, 0], k=2)
        assert client.ids(watch_id) == ["new", "d01"]


async def test_texts_are_embedded_where_the_collection_is(nodes: Nodes) -> None:
    async with edged(nodes, 1) as (_, edge, socket), watcher(edge) as client:
        for document_id, content in (("a", "red running shoes"), ("b", "a garden hose")):
            await until(socket, "ack", action="upsert", collection="m", id=document_id, content=content)
        watch_id = await client.watch(text="running shoes", k=1)
        assert client.ids(watch_id) == ["a"]
        await socket.reply(action="upsert", collection="m", id="c", content="running shoes")
        await client.update()
        assert client.ids(watch_id) == ["c"]


async def test_a_watch_of_a_document_follows_its_vector(nodes: Nodes) -> None:
    async with watched(nodes) as scene:
        watch_id = await scene.client.watch(id="d00", k=2)
        assert scene.client.ids(watch_id) == ["d01", "d02"]
        ack = await put(scene.socket, "d00", 1.0)
        await scene.exact(watch_id, ack, id="d00", k=2)
        assert scene.client.ids(watch_id)[0] == "d20"


async def test_documents_come_into_filters_and_leave_them(nodes: Nodes) -> None:
    async with watched(nodes) as scene:
        where = {"n": {"$gte": 10}}
        watch_id = await scene.client.watch(vector=[1, 0], k=3, filter=where)
        assert scene.client.ids(watch_id) == ["d10", "d11", "d12"]
        for document_id, n in (("d05", 50), ("d10", 1)):
            ack = await scene.socket.reply(action="patch", collection="m", id=document_id, changes={"n": n})
            await scene.exact(watch_id, ack, vector=[1, 0], k=3, filter=where)
        assert scene.client.ids(watch_id) == ["d05", "d11", "d12"]


@pytest.mark.parametrize("binary", [False, True])
async def test_vectors_and_content_come_with_every_item(nodes: Nodes, binary: bool) -> None:
    def vector(item: JsonMessage) -> list[float]:
        found = np.frombuffer(item["vector"], np.float32) if binary else item["vector"]
        return [float(number) for number in found]

    async with watched(nodes, binary=binary) as scene:
        client, socket = scene.client, scene.socket
        await socket.reply(action="upsert", collection="m", id="d00", vector=at(0), content="the first")
        first = await client.ask(action="watch", collection="m", vector=[1, 0], k=2, include=["content", "vector"])
        shown, other = first["results"]
        assert (shown["content"], vector(shown), shown["metadata"]) == ("the first", [1, 0], {"n": 0})
        assert "content" not in other
        await socket.reply(action="upsert", collection="m", id="new", vector=at(0.01), content="the second")
        (added,) = (await client.update())["added"]
        assert added["content"] == "the second"
        assert vector(added) == pytest.approx(at(0.01))
        assert added.keys() == {"id", "score", "rank", "metadata", "content", "vector"}


@pytest.mark.parametrize("binary", [False, True])
async def test_every_list_is_the_top_k_at_its_index_version(nodes: Nodes, binary: bool) -> None:
    rng, model = random.Random(7), Model()
    async with edged(nodes, 2) as (hosts, edge, socket), watcher(edge, binary=binary) as client:
        await ask(edge, "/v1/collections/m", "PUT", {"dimension": 6, "metric": "ip"})
        await level(*hosts)

        async def write() -> JsonMessage:
            ack = await socket.reply(**some_write(rng, model), collection="m")
            assert ack["type"] == "ack", ack
            model.states[ack["index_version"]] = dict(model.documents)
            return ack

        for _ in range(30):
            await write()
        await level(*hosts)
        asked: dict[str, tuple[list[float], int, int | None]] = {}
        for i in range(12):
            query, k, group = [rng.gauss(0, 1) for _ in range(6)], rng.choice((1, 3, 10)), i % 4 if i % 4 < 3 else None
            where: JsonMessage = {} if group is None else {"filter": {"group": group}}
            asked[await client.watch(vector=query, k=k, exact=True, **where)] = (query, k, group)
            await write()

        async def write_on() -> JsonMessage:
            for _ in range(200):
                ack = await write()
            return ack

        writing = asyncio.create_task(write_on())
        receiving = asyncio.create_task(client.receive())
        while not writing.done():
            await asyncio.wait({writing, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                receiving = asyncio.create_task(client.receive())
        ack = await writing
        receiving.cancel()
        await asyncio.wait([receiving])
        scene = Scene(hosts, edge, socket, client)
        for watch_id, (query, k, group) in asked.items():
            where = {} if group is None else {"filter": {"group": group}}
            await scene.exact(watch_id, ack, vector=query, k=k, **where)
    assert len(client.told) > 100
    for watch_id, index_version, told in client.told:
        top = model.top(index_version, *asked[watch_id])
        assert [document_id for document_id, _ in told] == [document_id for document_id, _ in top]
        assert [score for _, score in told] == pytest.approx([score for _, score in top], abs=1e-5)


async def test_watches_of_a_user_follow_what_the_user_does(nodes: Nodes) -> None:
    async with edged(nodes) as (hosts, edge, socket), json_socket(edge.ws) as client:
        await until(socket, "ack", action="upsert", collection="items", id="first", vector=axis(7))
        await add_items(socket)
        await level(*hosts, collection="items")
        watching = await client.reply(action="watch", collection="items", user_id="ann", k=3)
        assert watching["type"] == "watching", watching
        assert [sorted(item) for item in watching["results"]] == [["id", "metadata", "score"]] * 3
        for item in ("g1-0", "g1-1", "g1-2", "g1-3"):
            assert (await did(socket, "ann", "purchase", item))["type"] == "ack"
        update: JsonMessage = {"recommendations": []}
        while update["recommendations"][:2] != ["g1-4", "g1-5"]:
            update = await client.receive()
            assert update.keys() == {
                *("type", "watch_id", "collection", "user_id", "recommendations", "scores", "timestamp")
            }
            assert (update["type"], update["watch_id"]) == ("recommendation_update", watching["watch_id"])
        await socket.reply(action="delete", collection="items", id="g1-4")
        while "g1-4" in update["recommendations"]:
            update = await client.receive()
        assert update["recommendations"][0] == (await recommended(socket, "ann", k=1))[0] == "g1-5"
        await client.send(
            {"type": "user_event", "collection": "items", "user_id": "ann", "event_type": "like", "item_id": "g1-5"}
        )
        while "g1-5" in update.get("recommendations", ["g1-5"]):
            update = await client.receive()
            assert update.get("watch_id", watching["watch_id"]) == watching["watch_id"], "one push, that of the watch"


async def test_unwatch_ends_a_watch_at_its_host_and_others_go_on(nodes: Nodes) -> None:
    async with watched(nodes) as scene:
        client, socket = scene.client, scene.socket
        one, other = await client.watch(vector=[1, 0], k=3), await client.watch(vector=[0, 1], k=3)
        assert scene.lent == 2
        assert await client.ask(action="unwatch", watch_id=one) == {"type": "unwatched", "watch_id": one}
        await put(socket, "first", 0.0)
        await put(socket, "second", np.pi / 2)
        assert (await client.update())["watch_id"] == other
        await eventually(lambda: scene.lent == 1)
        await client.ask(action="unwatch", watch_id=other)
        await eventually(lambda: scene.lent == 0)
        assert (await client.ask(action="unwatch", watch_id=other))["code"] == "not_found"
        assert scene.client.ids(await client.watch(vector=[1, 0], k=2)) == ["d00", "first"], "after the last had ended"


async def test_watches_end_with_their_connection(nodes: Nodes) -> None:
    async with watched(nodes) as scene:
        async with watcher(scene.edge) as client:
            await client.watch(vector=[1, 0])
            await client.watch(vector=[1, 0], filter={"n": 1})
            assert scene.lent == 2
        await eventually(lambda: scene.lent == 0)
        assert len(scene.relaying) == 0


@pytest.mark.parametrize("where", ["host", "edge"])
async def test_who_watches_a_dropped_collection_is_told(nodes: Nodes, where: str) -> None:
    async with watched(nodes) as scene:
        watch_id = await scene.client.watch(vector=[1, 0])
        at_fault = scene.hosts[0] if where == "host" else scene.edge
        await ask(at_fault, "/v1/collections/m", "DELETE")
        assert await scene.client.receive() == {"type": "unwatched", "watch_id": watch_id, "collection": "m"}
        await until(scene.socket, "ack", action="upsert", collection="m", id="again", vector=[1, 0, 0])
        while (answer := await scene.client.ask(action="watch", collection="m", vector=[1, 0, 0]))["type"] == "error":
            assert answer["retryable"] or answer["code"] in ("not_found", "invalid_vector"), answer
        assert scene.client.ids(answer["watch_id"]) == ["again"]


async def test_what_is_wrong_with_a_watch_is_told_as_at_a_host(nodes: Nodes) -> None:
    wrong: list[tuple[JsonMessage, str, str | None]] = [
        ({}, "invalid_argument", "vector"),
        ({"vector": [1, 0], "id": "d00"}, "invalid_argument", "vector"),
        ({"vector": [1, 0, 0]}, "invalid_vector", "vector"),
        ({"vector": [0, 0]}, "invalid_vector", "vector"),
        ({"vector": [1, 0], "k": 0}, "invalid_argument", "k"),
        ({"vector": [1, 0], "k": 101}, "invalid_argument", "k"),
        ({"vector": [1, 0], "k": 2**70}, "invalid_argument", "k"),
        ({"vector": [1, 0], "filter": {"n": 2**70}}, "invalid_filter", None),
        ({"user_id": "ann", "k": 2**70}, "invalid_argument", "k"),
        ({"vector": [1, 0], "filter": {"n": {"$near": 1}}}, "invalid_filter", None),
        ({"vector": [1, 0], "max_rate": 0}, "invalid_argument", "max_rate"),
        ({"id": "nobody"}, "not_found", "id"),
        ({"text": "shoes"}, "invalid_argument", "text"),
        ({"user_id": "ann", "text": "shoes"}, "invalid_argument", "text"),
        ({"user_id": ""}, "invalid_argument", "user_id"),
        ({"vector": [1, 0], "collection": "none"}, "not_found", "collection"),
    ]
    async with watched(nodes, max_watches=2) as scene, watcher(scene.hosts[0]) as at_host:
        for command, code, field in wrong:
            answer = await scene.client.ask(action="watch", **{"collection": "m", **command})
            assert (answer["type"], answer["code"]) == ("error", code), command
            assert field is None or answer["field"] == field
            assert answer == await at_host.ask(action="watch", **{"collection": "m", **command})
        assert (scene.lent, len(scene.relaying)) == (0, 0)
        for _ in range(2):
            await scene.client.watch(vector=[1, 0])
        refused = await scene.client.ask(action="watch", collection="m", vector=[1, 0])
        assert refused["code"] == "invalid_argument"
        assert "the limit is 2" in refused["message"]


async def test_a_number_that_nodes_cannot_pass_on_ends_no_others_watches(nodes: Nodes) -> None:
    """All who watched at the edge were sent away."""
    async with watched(nodes) as scene, json_socket(scene.edge.ws) as other:
        watch_id = await scene.client.watch(vector=[1, 0], k=2)
        refused = await other.ask(action="watch", collection="m", vector=[1, 0], k=2**70, ref=2**70)
        assert (refused["code"], refused["field"], refused["ref"]) == ("invalid_argument", "k", 2**70)
        answer = await other.ask(action="watch", collection="m", vector=[1, 0], ref=2**70)
        assert (answer["type"], answer["ref"]) == ("watching", 2**70)
        await put(scene.socket, "new", 0.01)
        await scene.client.update()
        assert scene.client.ids(watch_id) == ["d00", "new"]


async def test_a_watch_waits_at_the_edge_for_what_no_host_has(nodes: Nodes) -> None:
    """Waiting at the host it would hold up what others begin to watch."""
    async with watched(nodes, read_wait_s=0.1) as scene:
        ack = await put(scene.socket, "new", 0.01)
        seen = await scene.client.ask(
            action="watch", collection="m", vector=[1, 0], k=2, min_index_version=ack["index_version"]
        )
        assert [item["id"] for item in seen["results"]] == ["d00", "new"]
        early = await scene.client.ask(action="watch", collection="m", vector=[1, 0], min_index_version=2**62)
        assert (early["code"], early["field"]) == ("overloaded", "min_index_version")
        assert scene.lent == 1


async def test_max_rate_gathers_changes(nodes: Nodes) -> None:
    async with watched(nodes) as scene:
        watch_id = await scene.client.watch(vector=[1, 0], k=3, max_rate=0.5)
        loop = asyncio.get_running_loop()
        await put(scene.socket, "a", 0.001)
        await scene.client.update()
        told = loop.time()
        await put(scene.socket, "b", 0.002)
        await put(scene.socket, "c", 0.0005)
        update = await scene.client.update()
        assert loop.time() - told > 1.9
        assert [item["id"] for item in update["added"]] == ["c"], "b came, and went again, in the meantime"
        assert scene.client.ids(watch_id) == ["d00", "c", "a"]


async def test_who_does_not_read_is_told_one_difference_and_holds_up_nobody(nodes: Nodes) -> None:
    async with watched(nodes) as scene, watcher(scene.edge) as other:
        client, socket = scene.client, scene.socket
        watch_id = await client.watch(vector=[1, 0], k=10)
        stalled = scene.relayed
        client.connection.transport.pause_reading()
        text = "t" * 20_000
        turn = stuck = 0
        while stuck < 20:  # the kernel's buffers may take another update after they seemed full
            turn += 1
            await put(socket, f"d{turn % 10:02}", turn % 10 / 20, text=text, turn=turn)
            stuck = stuck + 1 if scene.relaying.behind else 0
        theirs = await other.watch(vector=[1, 0], k=10)
        for i in range(20):
            await put(socket, f"new{i}", i / 1000, text=text)
        last = await socket.reply(action="delete", collection="m", id="new0")
        while other.index_versions[theirs] < last["index_version"]:
            await other.update()
        await eventually(lambda: stalled.told.index_version == last["index_version"])
        assert scene.relaying.behind == 1
        told = scene.relaying.updates - len(other.updates)
        client.connection.transport.resume_reading()
        while client.index_versions[watch_id] < last["index_version"]:
            await client.update()
        assert len(client.updates) == told + 1, "of 21 changes"
        assert client.ids(watch_id) == other.ids(theirs)
        await scene.exact(watch_id, last, vector=[1, 0], k=10)
        assert len(client.updates) == told + 1


async def test_a_node_that_begins_to_host_sends_clients_away_who_watch_anew(nodes: Nodes) -> None:
    async with watched(nodes) as scene:
        await scene.client.watch(vector=[1, 0], k=3)
        async with scene.edge.node._hosting.changing:
            await scene.edge.node._let_go("m")
        with pytest.raises(websockets.ConnectionClosed):
            await scene.client.update()
        await eventually(lambda: "m" in scene.edge.node.cluster.names())
        async with watcher(scene.edge) as client:
            assert client.ids(await client.watch(vector=[1, 0], k=2)) == ["d00", "d01"]
        await eventually(lambda: scene.lent <= 1)


async def test_watches_are_counted_at_both_nodes(nodes: Nodes) -> None:
    async with watched(nodes) as scene:
        for vector in ([1, 0], [0, 1]):
            await scene.client.watch(vector=vector, k=3)
        await put(scene.socket, "new", 0.0)
        await scene.client.update()
        stats = await ask(scene.edge, "/v1/stats")
        assert stats["collections"] == []
        assert stats["relayed"] == [
            {
                "name": "m",
                "relayed_watches": 2,
                "relayed_watches_behind": 0,
                "relayed_watch_updates": 1,
                "relayed_watch_hosts_lost": 0,
            }
        ]
        async with aiohttp.ClientSession(scene.edge.http) as http, http.get("/metrics") as response:
            assert 'hotindex_relayed_watches{collection="m"} 2.0' in await response.text()
        (at_host,) = (await ask(scene.hosts[0], "/v1/stats"))["collections"]
        assert (at_host["watches"], at_host["watch_updates"]) == (2, 1)

"""Watches at an edge whose hosts are killed: they stay, and are told what was missed as one difference."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.app import Gateway
from gateway.node import peers
from gateway.node.exchange import Greeting
from gateway.node.peers import PeerChannel
from gateway.node.relaying import Relaying
from tests.cluster.fleet import Fleet, Member, eventually, fleet
from tests.cluster.nodes import ask, until
from tests.conftest import JsonMessage, StartGateway, json_socket
from tests.redis_servers import RedisServer
from tests.server.watchers import Watcher, at, watcher

COUNT = 30
MANY = 150
"""Watches: more than a host begins at once."""


class Gate:
    """Keeps an edge from looking for a host while it is shut."""

    def __init__(self, relaying: Relaying) -> None:
        self.shut = False
        self._open = asyncio.Event()
        self._connect = relaying._connect
        relaying._connect = self._wait

    def open(self) -> None:
        self.shut = False
        self._open.set()

    @asynccontextmanager
    async def _wait(self, greeting: Greeting) -> AsyncIterator[PeerChannel]:
        if self.shut:
            await self._open.wait()
        async with self._connect(greeting) as channel:
            yield channel


class Scene:
    """Hosts that can be killed, and an edge in this process."""

    def __init__(self, nodes: Fleet, edge: Gateway, client: Watcher) -> None:
        self.nodes = nodes
        self.edge = edge
        self.client = client

    @property
    def relaying(self) -> Relaying:
        (found,) = self.edge.node.relaying()
        return found

    async def lender(self) -> Member:
        """Return the host that lends the watches."""
        found: list[Member] = []

        async def lends() -> bool:
            for member in self.nodes.members:
                stats = await member.get("/v1/stats") if member.alive else None
                if stats and any(one["watches"] for one in stats["collections"]):
                    found.append(member)
            return bool(found)

        await eventually(lends, "a host lends watches")
        (lender,) = found
        return lender

    def other(self, member: Member) -> Member:
        (found,) = [other for other in self.nodes.members if other is not member]
        return found

    async def exact(self, watch_id: str, least: int, **query: Any) -> None:
        """Check that a client's list is what an exact search answers after a write."""
        how = {"action": "search", "collection": "m", "exact": True, "min_index_version": least}
        while (search := await self.client.ask(**how, **query))["type"] == "error":
            assert search["retryable"], search
        wanted = [(item["id"], item["metadata"]) for item in search["results"]]
        assert [(item["id"], item["metadata"]) for item in self.client.ranked(watch_id)] == wanted


async def put(member: Member, document_id: str, angle: float, **metadata: Any) -> int:
    return (await member.client.upsert("m", id=document_id, vector=at(angle), metadata=metadata)).index_version


@asynccontextmanager
async def scene(path: Path, redis: RedisServer, start_gateway: StartGateway, count: int = 2) -> AsyncIterator[Scene]:
    def edge() -> AbstractAsyncContextManager[Gateway]:
        return start_gateway(node="edge", redis_url=redis.url, data_dir=path / "edge", collections="nothing")

    async with fleet(path, redis, count) as nodes:
        for i in range(COUNT):
            await put(nodes.members[0], f"d{i:02}", i / 20, n=i)
        await nodes.level("m")
        async with edge() as gateway, watcher(gateway) as client:
            while (answer := await client.ask(action="watch", collection="m", vector=[1, 0], k=1))["type"] == "error":
                assert answer["retryable"] or answer["code"] == "not_found", answer
                await asyncio.sleep(0.02)
            await client.ask(action="unwatch", watch_id=answer["watch_id"])
            yield Scene(nodes, gateway, client)


async def test_what_was_missed_while_a_host_was_lost_comes_as_one_difference(
    tmp_path: Path, redis: RedisServer, start_gateway: StartGateway
) -> None:
    async with scene(tmp_path, redis, start_gateway) as at_edge:
        client = at_edge.client
        queries: list[JsonMessage] = [
            {"vector": [1, 0], "k": 3},
            {"vector": [0, 1], "k": 5, "filter": {"n": {"$gte": 10}}},
            {"id": "d10", "k": 4},
            {"vector": [-1, 0], "k": 1},
        ]
        asked = {await client.watch(**query): query for query in queries}
        lender = await at_edge.lender()
        survivor = at_edge.other(lender)
        gate = Gate(at_edge.relaying)
        gate.shut = True
        lender.kill()
        await put(survivor, "new", 0.01, n=10)
        await put(survivor, "gone", 0.02)
        await put(survivor, "d29", 0.5, n=-1)
        await survivor.client.delete("m", "gone")
        last = await put(survivor, "d10", 0.8, n=11)
        told = len(client.updates)
        gate.open()
        for _ in asked:
            await client.update()
        assert {update["watch_id"] for update in client.updates[told:]} == asked.keys(), "one for each"
        for watch_id, query in asked.items():
            await at_edge.exact(watch_id, last, **query)
        assert len(client.updates) == told + len(asked)
        assert at_edge.relaying.lost == 1
        assert await at_edge.lender() is survivor
        last = await put(survivor, "newer", 0.0)
        while "newer" not in client.ids(next(iter(asked))):
            await client.update()
        await at_edge.exact(next(iter(asked)), last, vector=[1, 0], k=3)


async def test_what_has_not_changed_meanwhile_is_not_told(
    tmp_path: Path, redis: RedisServer, start_gateway: StartGateway
) -> None:
    async with scene(tmp_path, redis, start_gateway) as at_edge:
        client = at_edge.client
        watch_ids = [await client.watch(vector=at(i / 10_000), k=3) for i in range(MANY)]
        lender = await at_edge.lender()
        lender.kill()
        survivor = at_edge.other(lender)

        async def lent() -> bool:
            (collection,) = (await survivor.get("/v1/stats"))["collections"]
            return bool(collection["watches"] == MANY)

        await eventually(lent, "the survivor lends all of them")
        await put(survivor, "new", 0.0)
        for _ in watch_ids:
            update = await client.update()
            assert [item["id"] for item in update["added"]] == ["new"]
        assert {update["watch_id"] for update in client.updates} == set(watch_ids)
        assert len(client.updates) == MANY
        assert client.ids(watch_ids[0]) == ["d00", "new", "d01"]


async def test_while_no_host_is_there_watches_stay_and_new_ones_are_refused(
    tmp_path: Path, redis: RedisServer, start_gateway: StartGateway
) -> None:
    async with scene(tmp_path, redis, start_gateway, count=1) as at_edge:
        client = at_edge.client
        (host,) = at_edge.nodes.members
        watch_id = await client.watch(vector=[1, 0], k=3)
        host.kill()
        for command in ("watch", "search"):
            refused = await client.ask(action=command, collection="m", vector=[0, 1])
            assert (refused["code"], refused["retryable"]) == ("overloaded", True), refused
            assert refused["retry_after_s"] > 0
        assert len(at_edge.relaying) == 1
        await host.start()
        last = await put(host, "new", 0.01)
        update = await client.update()
        while client.ids(watch_id) != ["d00", "new", "d01"]:
            update = await client.update()
        assert update["index_version"] <= last
        await at_edge.exact(watch_id, last, vector=[1, 0], k=3)


async def test_who_watches_is_told_that_the_collection_was_dropped_while_no_host_was_there(
    tmp_path: Path, redis: RedisServer, start_gateway: StartGateway
) -> None:
    async with (
        scene(tmp_path, redis, start_gateway, count=1) as at_edge,
        start_gateway(node="other", redis_url=redis.url, data_dir=tmp_path / "other", collections="nothing") as other,
        json_socket(other.ws) as socket,
        json_socket(at_edge.edge.ws) as subscriber,
    ):
        client = at_edge.client
        watch_id = await client.watch(vector=[1, 0], k=3)
        assert (await subscriber.ask(action="subscribe", collection="m"))["type"] == "subscribed"
        await until(socket, "results", action="search", collection="m", vector=[1, 0])
        at_edge.nodes.members[0].kill()
        await ask(other, "/v1/collections/m", "DELETE")
        assert await client.receive() == {"type": "unwatched", "watch_id": watch_id, "collection": "m"}
        assert await subscriber.receive() == {"type": "unsubscribed", "collection": "m"}
        for command in ("watch", "search"):
            assert (await client.ask(action=command, collection="m", vector=[1, 0]))["code"] == "not_found"


async def test_what_a_user_did_meanwhile_is_told_at_once(
    tmp_path: Path, redis: RedisServer, start_gateway: StartGateway
) -> None:
    async with scene(tmp_path, redis, start_gateway) as at_edge, watcher(at_edge.edge) as client:
        for i in range(6):
            await at_edge.nodes.members[0].client.interact("ann", "purchase", f"d0{i}", collection="m")

        async def known() -> bool:
            users = [await member.get("/v1/users/ann?collection=m") for member in at_edge.nodes.members]
            return all(user and user["version"] == 6 for user in users)

        await eventually(known, "both know the user")
        watching = await client.ask(action="watch", collection="m", user_id="ann", k=3, diversity=0)
        assert watching["type"] == "watching", watching
        lender = await at_edge.lender()
        survivor = at_edge.other(lender)
        gate = Gate(at_edge.relaying)
        gate.shut = True
        lender.kill()
        listed = [item["id"] for item in watching["results"]]
        for document_id in listed:
            await survivor.client.interact("ann", "purchase", document_id, collection="m")
        gate.open()
        update: JsonMessage = {"recommendations": listed}
        while set(listed) & set(update["recommendations"]):
            update = await client.receive()
            assert (update["type"], update["watch_id"]) == ("recommendation_update", watching["watch_id"])
        assert len(update["recommendations"]) == len(update["scores"]) == 3


async def test_a_host_that_says_nothing_any_more_is_left(
    tmp_path: Path, redis: RedisServer, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_SILENT_S", 3.0)
    async with scene(tmp_path, redis, start_gateway) as at_edge:
        watch_id = await at_edge.client.watch(vector=[1, 0], k=3)
        frozen = await at_edge.lender()
        frozen.freeze()
        try:
            last = await put(at_edge.other(frozen), "new", 0.01)
            await at_edge.client.update()
            await at_edge.exact(watch_id, last, vector=[1, 0], k=3)
            assert at_edge.client.ids(watch_id) == ["d00", "new", "d01"]
        finally:
            frozen.thaw()


async def test_the_last_vector_of_a_deleted_document_stays_the_query_at_another_host(
    tmp_path: Path, redis: RedisServer, start_gateway: StartGateway
) -> None:
    async with scene(tmp_path, redis, start_gateway) as at_edge:
        client = at_edge.client
        watch_id = await client.watch(id="d00", k=2)
        lender = await at_edge.lender()
        survivor = at_edge.other(lender)
        await put(survivor, "d00", 1.0)
        while client.ids(watch_id)[0] != "d20":
            await client.update()
        await survivor.client.delete("m", "d00")
        lender.kill()
        await put(survivor, "new", 1.01)
        while client.ids(watch_id) != ["d20", "new"]:
            await client.update()
        await put(survivor, "d00", 0.0)
        while client.ids(watch_id) != ["d01", "d02"]:
            await client.update()


async def test_a_text_is_not_embedded_again_at_another_host(
    tmp_path: Path, redis: RedisServer, start_gateway: StartGateway
) -> None:
    async with scene(tmp_path, redis, start_gateway) as at_edge, watcher(at_edge.edge) as client:
        writer = at_edge.nodes.members[0].client
        for document_id, content in (("a", "red running shoes"), ("b", "a garden hose")):
            await writer.upsert("texts", id=document_id, content=content)
        await at_edge.nodes.level("texts")
        while (answer := await client.ask(action="watch", collection="texts", text="shoes", k=1))["type"] == "error":
            assert answer["retryable"] or answer["code"] == "not_found", answer
            await asyncio.sleep(0.02)
        assert client.ids(answer["watch_id"]) == ["a"]
        lender = await at_edge.lender()
        survivor = at_edge.other(lender)
        lender.kill()
        await at_edge.lender()

        async def embedded() -> int:
            (found,) = (await survivor.get("/v1/stats"))["models"]
            return int(found["texts"])

        before = await embedded()
        await survivor.client.upsert("texts", id="c", content="shoes")
        while client.ids(answer["watch_id"]) != ["c"]:
            await client.update()
        assert await embedded() == before + 1, "that of the document"


async def test_lists_never_go_back_while_hosts_come_and_go(
    tmp_path: Path, redis: RedisServer, start_gateway: StartGateway
) -> None:
    """The client notes each list it holds, and fails where an update doesn't fit its list or is older."""
    async with scene(tmp_path, redis, start_gateway) as at_edge, watcher(at_edge.edge, binary=True) as other:
        rng = random.Random(3)
        queries: list[JsonMessage] = [{"vector": at(i / 4), "k": 5, "exact": True} for i in range(8)]
        asked = {
            client: {await client.watch(**query): query for query in queries} for client in (at_edge.client, other)
        }
        hearing = [asyncio.create_task(hear(client)) for client in asked]
        for _ in range(3):
            lender = await at_edge.lender()
            survivor = at_edge.other(lender)
            for i in range(60):
                if i == 20:
                    lender.kill()
                if i == 40:
                    await lender.start()
                last = await put(survivor, f"d{rng.randrange(COUNT):02}", 2 * rng.random(), n=i)
            await at_edge.nodes.level("m")
        for task in hearing:
            assert not task.done(), task.exception()
            task.cancel()
        await asyncio.wait(hearing)
        for client, watches in asked.items():
            for watch_id, query in watches.items():
                how = {"action": "search", "collection": "m", "min_index_version": last, **query}
                while (search := await client.ask(**how))["type"] == "error":
                    assert search["retryable"], search
                wanted = [(item["id"], item["metadata"]) for item in search["results"]]
                while [(item["id"], item["metadata"]) for item in client.ranked(watch_id)] != wanted:
                    await client.update()
        assert at_edge.relaying.lost == 3


async def hear(client: Watcher) -> None:
    while True:
        await client.receive()

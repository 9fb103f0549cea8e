"""Nodes that host nothing, and forward what clients ask of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.provider import faults, ok, running
from gateway.engine.types import Span
from gateway.errors import NotFound, Overloaded
from gateway.node import answering, exchange, peers
from gateway.node.cluster import SharedCluster
from gateway.node.exchange import ChangesCall
from tests.cluster.nodes import Nodes, ask, edged, level, until
from tests.conftest import StartGateway, json_socket
from tests.redis_servers import RedisServer


async def test_an_edge_writes_reads_and_searches_where_the_collection_is(nodes: Nodes) -> None:
    async with edged(nodes) as (hosts, edge, socket):
        ack = await socket.reply(action="upsert", collection="m", id="x", vector=[1, 2], metadata={"a": 1}, content="c")
        assert ack["results"] == [{"id": "x", "version": 1, "status": "inserted"}]
        got = await socket.reply(action="get", collection="m", id="x", include=["content", "vector"])
        assert (got["metadata"], got["content"], got["vector"]) == ({"a": 1}, "c", [1, 2])
        found = await socket.reply(action="search", collection="m", vector=[1, 2], filter={"a": 1})
        assert [hit["id"] for hit in found["results"]] == ["x"]
        conflict = await socket.reply(action="patch", collection="m", id="x", changes={}, if_version=5)
        assert (conflict["code"], conflict["version"]) == ("conflict", 1)
        wrong = await socket.reply(action="search", collection="m", vector=[1, 2, 3])
        assert (wrong["code"], wrong["field"]) == ("invalid_vector", "vector")
        assert (await socket.reply(action="get", collection="m", id="y"))["code"] == "not_found"
        assert (await socket.reply(action="get", collection="n", id="y"))["code"] == "not_found"
        assert [one["name"] for one in (await ask(edge, "/v1/collections"))["collections"]] == ["m"]
        changes = await ask(edge, "/v1/collections/m/changes?since=0")
        assert [event["document_id"] for event in changes["changes"]] == ["x"]
        assert not edge.node.holdings()
        await level(*hosts)


@pytest.mark.parametrize(
    ("command", "code", "field"),
    [
        ({"action": "search", "vector": [1, 2], "k": 2**70}, "invalid_argument", "k"),
        ({"action": "search", "vector": [1, 2], "ef": 2**70}, "invalid_argument", "ef"),
        ({"action": "search", "vector": [1, 2], "filter": {"n": 2**70}}, "invalid_filter", "filter.n"),
        ({"action": "search", "vector": [1, 2], "min_index_version": 2**70}, "invalid_argument", "min_index_version"),
        ({"action": "search", "user_id": "ann", "k": 2**70}, "invalid_argument", "k"),
        (
            {
                "type": "user_event",
                "user_id": "ann",
                "event_type": "like",
                "item_id": "x",
                "item_features": {"n": 2**70},
            },
            "invalid_argument",
            "item_features.n",
        ),
    ],
)
async def test_an_edge_refuses_numbers_that_cannot_be_passed_on_as_a_host_does(
    nodes: Nodes, command: dict[str, Any], code: str, field: str
) -> None:
    async with edged(nodes, 1) as (hosts, _, socket), json_socket(hosts[0].ws) as at_host:
        await until(socket, "ack", action="upsert", collection="m", id="x", vector=[1, 2])
        for one in (socket, at_host):
            refused = await one.reply(collection="m", **command)
            assert (refused["code"], refused["field"]) == (code, field)


async def test_what_a_client_calls_a_command_needs_not_be_passed_on(nodes: Nodes) -> None:
    async with edged(nodes, 1) as (_, _, socket):
        await until(socket, "ack", action="upsert", collection="m", id="x", vector=[1, 2])
        for command in (
            {"action": "search", "vector": [1, 2]},
            {"type": "user_interaction", "user_id": "ann", "action": "like", "item_id": "x"},
        ):
            answer = await socket.ask(collection="m", ref=2**70, **command)
            assert (answer["type"], answer["ref"]) in (("results", 2**70), ("ack", 2**70)), answer


async def test_an_edge_that_finds_no_redis_says_of_no_collection_that_it_is_none(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Clients that came back to an edge were told `not_found`, which ended what they watched and subscribed to for good."""
    with RedisServer() as redis:
        nodes = Nodes(start_gateway, redis, tmp_path)
        async with nodes.node("host") as (_, at_host):
            await at_host.reply(action="upsert", collection="m", id="x", vector=[1, 2])
            redis.kill()
            async with nodes.node("edge", collections="nothing") as (_, socket):
                for command in (
                    {"action": "watch", "vector": [1, 2]},
                    {"action": "subscribe"},
                    {"action": "search", "vector": [1, 2]},
                    {"action": "get", "id": "x"},
                    {"action": "upsert", "id": "y", "vector": [1, 2]},
                ):
                    refused = await socket.reply(collection="m", **command)
                    assert (refused["code"], refused["retryable"]) == ("storage_unavailable", True), command


async def test_an_edge_that_has_heard_of_no_host_does_not_say_that_a_collection_is_none(nodes: Nodes) -> None:
    """It and Redis, emptied, may both have started again, before hosts have entered what they have."""
    async with nodes.node("edge", collections="nothing") as (_, socket):
        for command in ({"action": "watch", "vector": [1, 2]}, {"action": "subscribe"}):
            refused = await socket.reply(collection="m", **command)
            assert (refused["code"], refused["retryable"]) == ("storage_unavailable", True), command
        async with nodes.node("host"):
            await until(socket, "ack", action="upsert", collection="m", id="x", vector=[1, 2])
            search = {"action": "search", "collection": "n", "vector": [1, 2]}
            while (refused := await socket.reply(**search))["code"] != "not_found":
                assert refused["code"] == "storage_unavailable"


async def test_an_edge_knows_of_collections_that_redis_has_forgotten(nodes: Nodes) -> None:
    async with edged(nodes, 1) as (hosts, edge, socket):
        await until(socket, "ack", action="upsert", collection="m", id="x", vector=[1, 2])
        cluster = edge.node.cluster
        assert isinstance(cluster, SharedCluster)
        while not any("m" in one.holdings for one in cluster._others()):
            await asyncio.sleep(0.01)
        assert await cluster._forgotten({}, cluster._others()) == {"m"}
        async with edge.node._hosting.changing:
            await edge.node._let_go("m")
        await cluster._reconcile({})
        assert (await edge.node.served("m")).name == "m"
        with pytest.raises(NotFound):
            await edge.node.served("n")
        await ask(hosts[0], "/v1/collections/m", "DELETE")
        assert not await cluster._forgotten({}, cluster._others()), "it was dropped"


async def test_a_transaction_at_an_edge_is_applied_whole_or_not_at_all(nodes: Nodes) -> None:
    async with edged(nodes) as (hosts, edge, socket), json_socket(edge.ws) as watcher:
        documents = [{"id": "x", "vector": [1, 2]}, {"id": "y", "vector": [1, 2]}]
        await socket.reply(action="upsert", collection="m", documents=documents)
        await watcher.reply(action="subscribe", collection="m")
        operations: list[dict[str, Any]] = [
            {"action": "upsert", "id": "z", "vector": [1, 3], "metadata": {"n": 1}},
            {"action": "patch", "id": "z", "changes": {"n": 2}},
            {"action": "delete", "id": "y"},
            {"action": "patch", "id": "x", "changes": {"n": 3}, "if_version": 1},
        ]
        command = {"action": "transaction", "collection": "m", "operations": operations, "event_id": "e"}
        wrong = {"action": "upsert", "id": "w", "vector": [0, 0]}
        refused = await socket.reply(**{**command, "operations": [*operations, wrong]})
        assert (refused["code"], refused["field"]) == ("invalid_vector", "operations[4].vector")
        gone = {"action": "patch", "id": "y", "changes": {}}
        assert (await socket.reply(**{**command, "operations": [*operations, gone]}))["code"] == "not_found"
        ack = await socket.reply(**command)
        assert [result["status"] for result in ack["results"]] == ["inserted", "updated", "deleted", "updated"]
        await level(*hosts)
        again = await ask(
            hosts[0], "/v1/collections/m/transaction", "POST", {"operations": operations, "event_id": "e"}
        )
        assert {result["status"] for result in again["results"]} == {"duplicate"}
        events = await watcher.events(5)
        assert [(event["event_type"], event["index_version"]) for event in events] == [
            ("insert", 3),
            ("update", 4),
            ("delete", 5),
            ("update", 6),
            ("batch_complete", 6),
        ]
        assert (events[-1]["count"], events[-1]["first_index_version"]) == (4, 3)
        await level(*hosts)


async def test_the_rate_of_writes_is_that_of_the_node_they_first_come_to(nodes: Nodes) -> None:
    async with (
        nodes.node("host", max_writes_per_s=0.1) as (_, at_host),
        nodes.node("edge", collections="nothing", max_writes_per_s=5) as (_, at_edge),
    ):
        await until(at_edge, "ack", action="upsert", collection="m", id="x", vector=[1, 2])
        ids = [f"{i}" for i in range(5)]
        ack = await until(at_edge, "ack", action="delete", collection="m", ids=ids)
        assert len(ack["results"]) == 5, "the host doesn't count what is forwarded"
        refused = await at_edge.reply(action="delete", collection="m", ids=ids)
        assert (refused["code"], 0 < refused["retry_after_s"] <= 1) == ("rate_limited", True)
        assert (await at_host.reply(action="delete", collection="m", id="y"))["type"] == "ack"
        assert (await at_host.reply(action="delete", collection="m", id="y"))["code"] == "rate_limited"


async def test_a_slow_text_at_an_edge_holds_up_nothing_but_its_own_document(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call was under way at a time, and a call that took longer than nodes may take was given up though applied."""
    monkeypatch.setattr(peers, "ALIVE_S", 0.01)
    answer = asyncio.Event()
    async with running(dimension=2) as provider:
        provider.otherwise = faults.waiting(answer, ok)
        model = {"url": provider.url, "model": "m", "dimension": 2}
        async with edged(nodes, models={"slow": model}) as (hosts, edge, socket):
            await ask(edge, "/v1/collections/m", "PUT", {"model": "slow"})
            await until(socket, "ack", action="upsert", collection="m", id="x", vector=[1, 2])
            async with json_socket(edge.ws) as other:
                for number, (document_id, content) in enumerate([("t", "slow text"), ("t", "another"), ("u", "third")]):
                    command = {"action": "upsert", "collection": "m", "id": document_id, "content": content}
                    await socket.send({**command, "ref": number})
                while not provider.requests:
                    await asyncio.sleep(0.001)
                for priority in (0, 2):
                    vector = {"id": f"v{priority}", "vector": [1, 2], "priority": priority}
                    assert (await other.reply(action="upsert", collection="m", **vector))["type"] == "ack"
                answer.set()
                acks = [await socket.receive() for _ in range(3)]
                assert {ack["type"] for ack in acks} == {"ack"}
                assert [ack["results"][0]["version"] for ack in acks if ack["results"][0]["id"] == "t"] == [1, 2]
            await level(*hosts)


async def test_a_host_that_is_behind_does_not_answer_for_what_it_has_not(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edge that followed another host took its answer for whole, and passed over changes for good."""
    async with nodes.node("a") as (gateway, socket):
        await socket.reply(action="upsert", collection="m", id="x", vector=[1, 2])
        hosted = gateway.node.hosted("m")
        call = ChangesCall(Span(0, 0, 2), 10, 1000, False, hosted.epoch)
        asked = asyncio.create_task(answering.answer(hosted, "changes", exchange.encode(call)))
        await asyncio.sleep(0)
        await socket.reply(action="upsert", collection="m", id="y", vector=[1, 2])
        page = exchange.decode_page(await asked)
        assert [change.document.id for change in page.changes] == ["x", "y"]
        ahead = exchange.encode(ChangesCall(Span(0, 0, 9), 10, 1000, False, hosted.epoch))
        monkeypatch.setattr(answering, "_REACH_S", 0.01)
        with pytest.raises(Overloaded):
            await answering.answer(hosted, "changes", ahead)


async def test_the_room_at_an_edge_is_the_room(nodes: Nodes) -> None:
    async with edged(nodes) as (_, edge, socket), json_socket(edge.ws) as filtered, json_socket(edge.ws) as late:
        await socket.reply(action="upsert", collection="m", id="x", vector=[1, 2], metadata={"kind": "a"})
        await socket.reply(action="subscribe", collection="m", include=["vector"])
        await filtered.reply(action="subscribe", collection="m", filter={"kind": "a"})
        await socket.send({"action": "patch", "collection": "m", "id": "x", "changes": {"kind": "b"}})
        (event,) = await socket.events(1)
        assert (event["index_version"], event["vector"], event["metadata"]) == (2, [1, 2], {"kind": "b"})
        (left,) = await filtered.events(1)
        assert left["left"] is True
        documents = [{"id": f"d{i}", "vector": [1, i], "metadata": {"kind": "c"}} for i in range(300)]
        await late.reply(action="upsert", collection="m", documents=documents, atomic=True)
        events = await socket.events(301)
        assert [event["index_version"] for event in events] == [*range(3, 303), 302]
        assert events[-1]["event_type"] == "batch_complete"
        subscribed = await late.reply(action="subscribe", collection="m", since=1)
        assert subscribed["recovered"]
        missed = await late.events(301)
        assert [event["index_version"] for event in missed] == list(range(2, 303))


async def test_watches_hear_of_writes_at_other_hosts(nodes: Nodes) -> None:
    async with nodes.node("a") as (_, at_a), nodes.node("b") as (b, at_b):
        await until(at_a, "ack", action="upsert", collection="m", id="x", vector=[1, 2])
        while "m" not in b.node.holdings():
            await asyncio.sleep(0.01)
        assert (await at_b.ask(action="watch", collection="m", vector=[0, 1]))["type"] == "watching"
        await at_a.reply(action="upsert", collection="m", id="y", vector=[0, 1])
        added: list[str] = []
        while "y" not in added:
            added += [item["id"] for item in (await at_b.receive())["added"]]


async def test_an_edge_goes_on_with_another_host_when_one_is_gone(nodes: Nodes) -> None:
    async with nodes.node("stays") as (stays, _), AsyncExitStack() as first:
        await first.enter_async_context(nodes.node("goes"))
        async with nodes.node("edge", collections="nothing") as (edge, socket), json_socket(edge.ws) as watcher:
            await until(socket, "ack", action="upsert", collection="m", id="x", vector=[1, 2])
            while "m" not in stays.node.holdings():
                await asyncio.sleep(0.01)
            await watcher.reply(action="subscribe", collection="m")
            await first.aclose()
            for i in range(10):
                ack = await socket.reply(action="patch", collection="m", id="x", changes={"n": i})
                assert ack["type"] == "ack", ack
                found = await socket.reply(action="search", collection="m", vector=[1, 2])
                assert found["results"][0]["metadata"] == {"n": i}
            # What came while the edge had no host to follow comes as the net change.
            seen = [-1]
            while seen[-1] < 9:
                (event,) = await watcher.events(1)
                seen.append(event["metadata"]["n"])
            assert seen == sorted(set(seen))

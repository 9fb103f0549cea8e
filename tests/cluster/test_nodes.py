"""Gateways that share collections through Redis: joining, dropping and listing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import msgpack
import pytest

from gateway.errors import StartupError
from tests.cluster.nodes import Nodes, ask, edged, level, until
from tests.conftest import StartGateway, json_socket
from tests.redis_servers import RedisServer


async def test_what_is_written_at_one_node_is_pushed_at_another(nodes: Nodes) -> None:
    async with nodes.node("a") as (a, at_a), nodes.node("b") as (b, at_b):
        await at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2])
        await level(a, b)
        await until(at_b, "subscribed", action="subscribe", collection="m")
        ack = await at_a.reply(action="patch", collection="m", id="x", changes={"n": 1})
        (event,) = await at_b.events(1)
        assert (event["index_version"], event["metadata"]) == (ack["index_version"], {"n": 1})
        await at_b.reply(action="delete", collection="m", id="x")
        await level(a, b)


async def test_a_search_waits_for_what_another_node_acknowledged(nodes: Nodes) -> None:
    async with nodes.node("a") as (_, at_a), nodes.node("b") as (_, at_b):
        await at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2])
        await until(at_b, "document", action="get", collection="m", id="x")
        for i in range(20):
            ack = await at_a.reply(action="upsert", collection="m", id=f"d{i}", vector=[i + 1, 1])
            found = await at_b.reply(
                action="search", collection="m", id="x", k=50, min_index_version=ack["index_version"]
            )
            assert found["index_version"] >= ack["index_version"]
            assert f"d{i}" in {hit["id"] for hit in found["results"]}


async def test_a_new_node_copies_what_there_is_while_it_changes(nodes: Nodes) -> None:
    async with nodes.node("a", stream_changes=20) as (a, at_a):
        documents = [{"id": f"d{i}", "vector": [i, 1], "metadata": {"n": i}} for i in range(500)]
        await at_a.reply(action="upsert", collection="m", documents=documents)
        await at_a.reply(action="delete", collection="m", ids=["d1", "d2"])
        for i in range(50):
            await at_a.reply(action="patch", collection="m", id=f"d{10 + i}", changes={"again": True})
        async with nodes.node("b", stream_changes=20) as (b, at_b):
            for i in range(100):
                await at_a.reply(action="upsert", collection="m", id=f"n{i}", vector=[1, i])
            await until(at_b, "document", action="get", collection="m", id="n99")
            await level(a, b)
            again = await at_b.reply(action="upsert", collection="m", id="d1", vector=[1, 1])
            assert again["results"] == [{"id": "d1", "version": 3, "status": "inserted"}]


async def test_a_copy_brings_the_event_ids_along(nodes: Nodes) -> None:
    async with nodes.node("a", stream_changes=5) as (_, at_a):
        await at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2], event_id="e1")
        for i in range(50):
            await at_a.reply(action="upsert", collection="m", id=f"n{i}", vector=[1, i])
        async with nodes.node("b", stream_changes=5) as (b, at_b):
            while (await ask(b, "/v1/nodes"))["nodes"][1]["index_versions"] != {"m": 51}:
                await asyncio.sleep(0.01)
            ack = await at_b.reply(action="upsert", collection="m", id="x", vector=[9, 9], event_id="e1")
            assert ack["results"][0]["status"] == "duplicate"


async def test_a_collection_made_on_two_nodes_at_once_is_one(nodes: Nodes) -> None:
    async with nodes.node("a") as (a, at_a), nodes.node("b") as (b, at_b):
        acks = await asyncio.gather(
            at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2]),
            at_b.reply(action="upsert", collection="m", id="y", vector=[2, 1]),
        )
        assert {ack["type"] for ack in acks} == {"ack"}, acks
        await until(at_a, "document", action="get", collection="m", id="y")
        await until(at_b, "document", action="get", collection="m", id="x")
        await level(a, b)
        epochs = {(await ask(one, "/v1/collections/m"))["epoch"] for one in (a, b)}
        assert len(epochs) == 1


async def test_a_dropped_collection_goes_everywhere_also_from_who_was_away(nodes: Nodes) -> None:
    async with nodes.node("a") as (a, at_a):
        async with nodes.node("b") as (b, at_b):
            await at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2])
            await at_a.reply(action="upsert", collection="n", id="x", vector=[1, 2])
            for name in ("m", "n"):
                await until(at_b, "document", action="get", collection=name, id="x")
            await level(a, b)
            await ask(b, "/v1/collections/n", "DELETE")
            while (await ask(a, "/v1/collections"))["collections"][-1]["name"] != "m":
                await asyncio.sleep(0.01)
        await ask(a, "/v1/collections/m", "DELETE")
        await at_a.reply(action="upsert", collection="m", id="other", vector=[1, 2, 3])
        async with nodes.node("b") as (b, at_b):
            await until(at_b, "document", action="get", collection="m", id="other")
            assert (await ask(b, "/v1/collections/m"))["dimension"] == 3


async def test_a_node_with_another_collection_of_that_name_keeps_it_and_says_so(
    nodes: Nodes, start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with start_gateway(data_dir=tmp_path / "b") as alone, json_socket(alone.ws) as socket:
        await socket.reply(action="upsert", collection="m", id="mine", vector=[1, 2])
    async with nodes.node("a") as (_, at_a):
        await at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2])
        async with nodes.node("b", write_wait_s=0.3) as (b, at_b):
            assert (await at_b.reply(action="get", collection="m", id="mine"))["type"] == "document"
            refused = await at_b.reply(action="upsert", collection="m", id="y", vector=[1, 2])
            assert refused["code"] == "storage_unavailable"
            assert any("epoch" in fault for fault in await b.node.faults())


async def test_what_was_there_before_the_cluster_is_shared(
    nodes: Nodes, start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with start_gateway(data_dir=tmp_path / "a") as alone, json_socket(alone.ws) as socket:
        for i in range(30):
            await socket.reply(action="upsert", collection="m", id=f"d{i}", vector=[1, i])
    async with nodes.node("a") as (a, _), nodes.node("b") as (b, at_b):
        await until(at_b, "document", action="get", collection="m", id="d29")
        ack = await until(at_b, "ack", action="patch", collection="m", id="d0", changes={"x": 1})
        assert ack["index_version"] == 31
        await level(a, b)


async def test_nodes_are_listed_with_their_lag(nodes: Nodes) -> None:
    async with nodes.node("a") as (a, at_a), nodes.node("b") as (b, at_b):
        await at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2])
        await until(at_b, "document", action="get", collection="m", id="x")
        while [node["lag"] for node in (await ask(b, "/v1/nodes"))["nodes"]] != [{"m": 0}, {"m": 0}]:
            await asyncio.sleep(0.01)
        listed = (await ask(a, "/v1/nodes"))["nodes"]
        assert [(node["name"], node["ws"], node["http"]) for node in listed] == [
            ("a", a.ws, a.http),
            ("b", b.ws, b.http),
        ]
    async with nodes.node("c") as (c, _):
        assert [node["name"] for node in (await ask(c, "/v1/nodes"))["nodes"]] == ["c"]


async def test_metrics_tell_of_redis_and_of_writes(nodes: Nodes) -> None:
    async with nodes.node("a") as (a, at_a):
        await at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2])

        def metrics() -> str:
            with urllib.request.urlopen(f"{a.http}/metrics") as response:
                text: str = response.read().decode()
            return text

        text = await asyncio.to_thread(metrics)
        assert 'hotindex_writable{collection="m"} 1.0' in text
        (sent,) = [float(line.split()[1]) for line in text.splitlines() if line.startswith("hotindex_redis_commands ")]
        assert sent > 1


async def test_a_wrong_password_keeps_a_node_from_starting(nodes: Nodes, shared_redis: RedisServer) -> None:
    wrong = shared_redis.url.replace("redis://", "redis://:wrong@")
    with pytest.raises(StartupError, match="redis_url"):
        async with nodes.node("a", redis_url=wrong):
            pass


async def test_a_node_starts_without_redis_and_serves_what_it_has(nodes: Nodes, redis: RedisServer) -> None:
    async with nodes.node("a", redis_url=redis.url) as (_, at_a):
        await at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2])
    redis.kill()
    async with nodes.node("a", redis_url=redis.url, write_wait_s=0.2) as (a, at_a):
        assert (await at_a.reply(action="search", collection="m", vector=[1, 2]))["results"][0]["id"] == "x"
        refused = await at_a.reply(action="upsert", collection="m", id="y", vector=[1, 2])
        assert (refused["code"], refused["retryable"]) == ("storage_unavailable", True)
        assert await a.node.faults()
        redis.restart()
        await until(at_a, "ack", action="upsert", collection="m", id="y", vector=[1, 2])


async def test_collections_are_spread_over_nodes_that_host_some(nodes: Nodes) -> None:
    async with nodes.node("a", collections="m") as (a, at_a), nodes.node("b", collections="n") as (b, at_b):
        await until(at_a, "ack", action="upsert", collection="n", id="x", vector=[1, 2])
        await until(at_b, "ack", action="upsert", collection="m", id="y", vector=[1, 2])
        assert (list(a.node.holdings()), list(b.node.holdings())) == (["m"], ["n"])
        assert (await at_a.reply(action="get", collection="n", id="x"))["type"] == "document"
        assert (await at_b.reply(action="get", collection="m", id="y"))["type"] == "document"
        refused = await at_a.reply(action="upsert", collection="elsewhere", id="x", vector=[1, 2])
        assert (refused["code"], refused["retryable"]) == ("overloaded", True)


async def test_the_command_lists_nodes(nodes: Nodes) -> None:
    async with nodes.node("a") as (a, at_a):
        await at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2])
        command = [sys.executable, "-m", "hotindex", "nodes", "--http-url", a.http]
        for flags, expected in (([], "a     "), (["--json"], '{"name":"a",')):
            done = await asyncio.to_thread(
                subprocess.run, [*command, *flags], capture_output=True, text=True, check=True
            )
            lines = done.stdout.splitlines()
            assert lines[-1].startswith(expected)
            assert a.ws in lines[-1]


async def test_a_collection_dropped_and_made_again_in_turns_is_one_in_the_end(nodes: Nodes) -> None:
    async with nodes.node("a") as (a, at_a), nodes.node("b") as (b, at_b):
        for i in range(12):
            await until(at_a, "ack", action="upsert", collection="m", id=f"d{i}", vector=[1, 2])
            await at_b.send({"action": "patch", "collection": "m", "id": f"d{i}", "changes": {"x": 1}})
            await ask(a, "/v1/collections/m", "DELETE")
        await until(at_a, "ack", action="upsert", collection="m", id="last", vector=[1, 2])
        await until(at_b, "ack", action="upsert", collection="m", id="last", vector=[1, 3])
        await level(a, b)


async def test_a_forwarded_batch_that_comes_twice_is_applied_once(nodes: Nodes) -> None:
    """A host that was frozen carries out what it was asked to long after another host did."""
    async with edged(nodes, hosts=1) as ((host,), edge, socket):
        await socket.reply(action="upsert", collection="m", id="x", vector=[1, 2])
        bodies: list[bytes] = []
        answer = host.node.answer

        async def noted(name: str, call: str, body: bytes) -> bytes:
            bodies.extend([body] if call == "commit" else [])
            return await answer(name, call, body)

        host.node.answer = noted  # type: ignore[method-assign]
        for n in (1, 2):
            await socket.reply(action="patch", collection="m", id="x", changes={"n": n})
        await answer("m", "commit", bodies[0])
        assert (await socket.reply(action="get", collection="m", id="x"))["metadata"] == {"n": 2}
        assert edge.node.holdings() == {}


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/peer/m/commit", b"\xc1", "invalid_message"),
        ("/v1/peer/m/relay", b"rubbish", "invalid_message"),
        ("/v1/peer/m/copy", msgpack.packb({"epoch": "e", "term": 1, "origin": -1, "after": 0}), "invalid_message"),
        ("/v1/peer/m/commit", msgpack.packb([[[["p", "x", b"abc"]], False, None, 0, 0, None]]), "invalid_vector"),
        ("/v1/peer/m/commit", msgpack.packb([[[["p", ""]], False, None, 0, 0, None]]), "invalid_argument"),
        ("/v1/peer/m/commit", msgpack.packb([[[["x", "x"]], False, None, 0, 0, None]]), "invalid_message"),
        ("/v1/peer/m/fly", b"", "not_found"),
        ("/v1/peer/..%2F..%2Fevil/make", msgpack.packb({"dimension": 2}), "invalid_argument"),
        ("/v1/peer/n/make", msgpack.packb({"dimension": -1}), "invalid_argument"),
        ("/v1/peer/n/make", msgpack.packb({"name": "../n", "dimension": 2}), "invalid_message"),
    ],
)
async def test_what_a_peer_sends_is_checked(nodes: Nodes, path: str, body: bytes, code: str) -> None:
    async with nodes.node("a") as (a, at_a):
        await at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2])

        def answer() -> tuple[int, bytes]:
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(f"{a.http}{path}", body, method="POST"))
            with refused.value as error:
                return error.code, error.read()

        status, failure = await asyncio.to_thread(answer)
        assert (status, msgpack.unpackb(failure)["code"]) == (422, code)
        assert list(a.node.holdings()) == ["m"]


async def test_collections_that_are_left_to_others_keep_their_folder(nodes: Nodes) -> None:
    async with nodes.node("a") as (a, at_a):
        await at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2])
        async with nodes.node("b") as (b, at_b):
            while "m" not in b.node.holdings():
                await asyncio.sleep(0.01)
        async with nodes.node("b", collections="other") as (b, at_b):
            await until(at_b, "document", action="get", collection="m", id="x")
            assert b.node.holdings() == {}
            refused = await at_b.reply(action="search", collection="m", vector=[1, 2, 3])
            assert refused["code"] == "invalid_vector"
        assert a.node.holdings()


@pytest.mark.parametrize("collections", [",", "a,../b", "bad name"])
async def test_collections_to_host_have_valid_names(nodes: Nodes, collections: str) -> None:
    with pytest.raises(StartupError, match="collections"):
        async with nodes.node("a", collections=collections):
            pass

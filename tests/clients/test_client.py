"""The Python client against real gateways that come and go."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import hotindex
import msgpack
import numpy as np
import pytest
from hotindex import Client, Document, Reconnected, Reset, Update
from hotindex.backoff import Backoff
from hotindex.wire import vector_bytes
from websockets.asyncio.server import ServerConnection, serve

from gateway.app import Gateway
from gateway.commands.process import GatewayProcess
from tests.conftest import StartGateway
from tests.ports import free_port
from tests.server.test_websocket import drop

FAST = Backoff(first_s=0.01, limit_s=0.05)


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    async with Client(gateway.ws) as connected:
        yield connected


async def test_write_and_read(client: Client) -> None:
    ack = await client.upsert("m", id="a", vector=[1, 0], content="text", metadata={"x": 1})
    assert (ack.collection, ack.index_version, ack.results[0].status) == ("m", 1, "inserted")
    ack = await client.upsert("m", [Document("b", np.array([0.0, 1.0])), Document("c", array("f", [1, 1]))])
    assert [result.id for result in ack.results] == ["b", "c"]
    await client.patch("m", "a", {"x": None, "y": 2})
    document = await client.get("m", "a", include=["content", "vector"])
    assert (document.version, document.metadata, document.content) == (2, {"y": 2}, "text")
    assert document.vector is not None
    assert document.vector.tolist() == [1, 0]
    assert document.updated_at.tzinfo is not None
    results = await client.search("m", vector=[0, 2], k=2, include=["vector"])
    assert [hit.id for hit in results.hits] == ["b", "c"]
    assert results.hits[0].score == pytest.approx(1)
    assert [hit.id for hit in (await client.search("m", id="a", k=1)).hits] == ["c"]
    assert [hit.id for hit in (await client.search("m", vector=[0, 2], min_score=0.99)).hits] == ["b"]
    assert (await client.search("m", vector=[1, 0], filter={"y": 2})).hits[0].metadata == {"y": 2}
    ack = await client.delete("m", "a", "nobody")
    assert [result.status for result in ack.results] == ["deleted", "missing"]
    assert client.greeting["node"] == "test"


@pytest.mark.parametrize(
    "vector",
    [[1, 2.5], (1, 2.5), array("d", [1, 2.5]), np.array([1, 2.5]), np.array([1, 2.5], ">f4"), vector_bytes([1, 2.5])],
)
def test_vectors_of_any_kind(vector: hotindex.types.VectorLike) -> None:
    assert np.frombuffer(vector_bytes(vector), "<f4").tolist() == [1, 2.5]


async def test_errors_are_typed(start_gateway: StartGateway) -> None:
    async with start_gateway(read_wait_s=0.05) as gateway, Client(gateway.ws) as client:
        await _provoke(client)


async def _provoke(client: Client) -> None:
    await client.upsert("m", id="a", vector=[1, 0])
    with pytest.raises(hotindex.NotFound) as missing:
        await client.get("m", "nobody")
    assert (missing.value.code, missing.value.retryable, missing.value.field) == ("not_found", False, "id")
    with pytest.raises(hotindex.Conflict) as conflict:
        await client.upsert("m", id="a", vector=[1, 1], if_version=7)
    assert conflict.value.version == 1
    with pytest.raises(hotindex.InvalidRequest, match="dimension 2"):
        await client.upsert("m", id="a", vector=[1, 1, 1])
    with pytest.raises(hotindex.Unavailable) as behind:
        await client.search("m", vector=[1, 1], min_index_version=99)
    assert behind.value.retryable
    with pytest.raises(TypeError, match="documents or an id"):
        await client.upsert("m", vector=[1, 1])


async def test_many_requests_at_once(client: Client) -> None:
    await asyncio.gather(*(client.upsert("m", id=f"d{i}", vector=[1, i]) for i in range(200)))
    found = await asyncio.gather(*(client.get("m", f"d{i}") for i in range(200)))
    assert [document.id for document in found] == [f"d{i}" for i in range(200)]


async def test_a_gateway_that_is_not_there(gateway: Gateway) -> None:
    with pytest.raises(hotindex.ConnectionLost) as away:
        await Client(f"ws://127.0.0.1:{free_port()}").connect()
    assert away.value.retryable
    with pytest.raises(hotindex.ConnectionLost) as wrong:
        await Client("http://127.0.0.1:1").connect()
    assert not wrong.value.retryable


async def test_the_greeting_is_there_once_the_client_is_connected(gateway: Gateway) -> None:
    client = Client(gateway.ws)
    assert client.greeting == {}
    async with client:
        assert (client.greeting["type"], client.greeting["node"]) == ("connected", "test")


async def test_the_greeting_is_that_of_the_latest_connection(start_gateway: StartGateway) -> None:
    port = free_port()
    async with start_gateway(ws_port=port) as gateway:
        client = Client(gateway.ws, backoff=FAST)
        await client.connect()
        first = client.greeting["client_id"]
    async with start_gateway(ws_port=port):
        await client.ping()
        assert client.greeting["client_id"] != first
        await client.close()


async def test_a_server_that_does_not_greet_is_no_gateway() -> None:
    async def keep_silent(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async def rave(connection: ServerConnection) -> None:
        await connection.send(b"hello")
        await connection.wait_closed()

    async with serve(keep_silent, "127.0.0.1", 0) as server:
        with pytest.raises(hotindex.ConnectionLost, match="can't connect"):
            await Client(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=0.2).connect()
    async with serve(rave, "127.0.0.1", 0) as server:
        with pytest.raises(hotindex.HotindexError, match="no message"):
            await Client(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}").connect()


async def test_connecting_given_up_before_the_greeting_closes_the_connection() -> None:
    connected, left = asyncio.Event(), asyncio.Event()

    async def keep_silent(connection: ServerConnection) -> None:
        connected.set()
        await connection.wait_closed()
        left.set()

    async with serve(keep_silent, "127.0.0.1", 0) as server:
        connecting = asyncio.create_task(Client(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}").connect())
        await connected.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await asyncio.wait_for(left.wait(), 20)


async def test_a_subscription_from_now_on(client: Client) -> None:
    await client.upsert("m", id="before", vector=[1, 0])
    async with client.subscribe("m", include=["content"]) as updates:
        await client.upsert("m", id="a", vector=[1, 0], content="text", metadata={"x": 1})
        await client.delete("m", "a")
        first, second = await anext(updates), await anext(updates)
        assert isinstance(first, Update)
        assert isinstance(second, Update)
        assert (first.event_type, first.document_id, first.metadata, first.content) == ("insert", "a", {"x": 1}, "text")
        assert (second.event_type, second.index_version) == ("delete", 3)
        assert updates.index_version == 3
    async with client.subscribe("m", since=2) as again:
        assert (await anext(again)).index_version == 3  # type: ignore[union-attr]


async def test_since_zero_is_a_reset_and_everything(client: Client) -> None:
    await client.upsert("m", [Document(f"d{i}", [1, i]) for i in range(1500)])
    updates = client.subscribe("m", since=0)
    assert isinstance(await anext(updates), Reset)
    seen = [(await anext(updates)).document_id for _ in range(1500)]  # type: ignore[union-attr]
    assert seen == [f"d{i}" for i in range(1500)]
    await updates.close()


async def test_two_subscriptions_to_one_collection_are_refused(client: Client) -> None:
    await client.upsert("m", id="a", vector=[1, 0])
    async with client.subscribe("m"):
        with pytest.raises(hotindex.HotindexError, match="already"):
            await client.subscribe("m").__aenter__()
    async with client.subscribe("m"):
        pass


async def test_subscribing_to_what_is_not_there(client: Client) -> None:
    with pytest.raises(hotindex.NotFound):
        await anext(client.subscribe("nowhere"))


async def test_a_consumer_that_is_busy_stops_the_flow_and_gets_the_net_change(client: Client) -> None:
    await client.upsert("m", id="d0", vector=[1, 0])
    async with client.subscribe("m", buffer=10) as updates:
        for i in range(100):
            await client.upsert("m", id=f"d{i % 5}", vector=[1, i + 1])
        seen: list[Update] = []
        fullest = 0
        while not seen or seen[-1].index_version < 101:
            fullest = max(fullest, len(updates._held))
            update = await anext(updates)
            assert isinstance(update, Update)
            seen.append(update)
        positions = [update.index_version for update in seen]
        assert positions == sorted(set(positions))
        assert fullest <= 10
        assert {update.document_id: update.version for update in seen} == {
            document.id: document.version for document in [await client.get("m", f"d{i}") for i in range(5)]
        }


async def test_closing_ends_what_waits(gateway: Gateway) -> None:
    client = Client(gateway.ws)
    await client.connect()
    await client.upsert("m", id="a", vector=[1, 0])
    updates = client.subscribe("m")
    await updates.__aenter__()
    waiting = asyncio.create_task(anext(updates))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(hotindex.HotindexError, match="closed"):
        await waiting
    with pytest.raises(hotindex.HotindexError, match="closed"):
        await client.ping()


async def test_a_restart_is_survived_with_position_and_requests(start_gateway: StartGateway) -> None:
    port = free_port()
    async with start_gateway(ws_port=port) as gateway:
        client = Client(gateway.ws, backoff=FAST)
        await client.connect()
        await client.upsert("m", id="a", vector=[1, 0])
        updates = await client.subscribe("m", since=0).__aenter__()
        assert isinstance(await anext(updates), Reset)
        assert (await anext(updates)).document_id == "a"  # type: ignore[union-attr]
    waiting = asyncio.create_task(client.patch("m", "a", {"x": 1}))
    read = asyncio.create_task(client.get("m", "a"))
    write = asyncio.create_task(client.upsert("m", id="b", vector=[1, 0], event_id="e"))
    await asyncio.sleep(0.1)
    async with start_gateway(ws_port=port):
        assert (await waiting).results[0].version == 2
        assert (await read).id == "a"
        assert (await write).results[0].status == "inserted"
        assert await anext(updates) == Reconnected("m", 1), "no reset: it goes on from where it was"
        update = await anext(updates)
        assert isinstance(update, Update)
        assert {update.document_id, (await anext(updates)).document_id} == {"a", "b"}  # type: ignore[union-attr]
        await client.close()


async def test_what_was_cut_off_is_sent_again_only_where_that_is_safe() -> None:
    """A server that hangs up on the first command of each connection but the third."""
    commands: list[str] = []

    async def hang_up(connection: ServerConnection) -> None:
        await connection.send(msgpack.packb({"type": "connected", "node": "fake"}))
        command = msgpack.unpackb(await connection.recv())
        commands.append(command["action"])
        if len(commands) >= 3:
            await connection.send(msgpack.packb({"type": "pong", "ref": command["ref"], "timestamp": ""}))
            await connection.wait_closed()

    async with serve(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Client(f"ws://127.0.0.1:{port}", backoff=FAST) as client:
            with pytest.raises(hotindex.ConnectionLost) as lost:
                await client.delete("m", "a")
            assert lost.value.retryable
            await client.ping()
    assert commands == ["delete", "ping", "ping"]


@pytest.mark.parametrize("code", [4401, 4403])
async def test_a_refused_client_does_not_come_back(code: int) -> None:
    connections = 0

    async def refuse(connection: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        await connection.close(code, "no")

    async with serve(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Client(f"ws://127.0.0.1:{port}", backoff=FAST) as client:
            with pytest.raises(hotindex.ConnectionLost) as lost:
                await client.ping()
            assert not lost.value.retryable
            with pytest.raises(hotindex.ConnectionLost):
                await client.ping()
    assert connections == 1


async def test_a_request_that_finds_no_gateway_in_time(start_gateway: StartGateway) -> None:
    async with start_gateway() as gateway:
        client = Client(gateway.ws, backoff=FAST, timeout_s=0.2)
        await client.connect()
    with pytest.raises(hotindex.RequestTimeout):
        await client.search("m", vector=[1, 0])
    await client.close()


async def test_a_collection_made_anew_is_a_reset(tmp_path: Path, start_gateway: StartGateway) -> None:
    import shutil

    port = free_port()
    async with start_gateway(ws_port=port) as gateway:
        client = Client(gateway.ws, backoff=FAST)
        await client.connect()
        await client.upsert("m", [Document(f"d{i}", [1, i]) for i in range(5)])
        updates = await client.subscribe("m").__aenter__()
    shutil.rmtree(tmp_path / "data")
    async with start_gateway() as elsewhere, Client(elsewhere.ws) as other:
        await other.upsert("m", id="new", vector=[1, 0])
    async with start_gateway(ws_port=port):
        assert isinstance(await anext(updates), Reset)
        assert (await anext(updates)).document_id == "new"  # type: ignore[union-attr]
        await client.close()


def test_backoff_is_jittered_over_the_whole_span_and_bounded() -> None:
    backoff = Backoff(0.1, 5.0, random.Random(1))
    for attempt, ceiling in [(0, 0.1), (1, 0.2), (4, 1.6), (10, 5.0), (5000, 5.0)]:
        delays = [backoff.delay_s(attempt) for _ in range(500)]
        assert 0 <= min(delays) < ceiling * 0.05
        assert ceiling * 0.95 < max(delays) <= ceiling


def test_the_synchronous_client(tmp_path: Path) -> None:
    with (
        GatewayProcess(tmp_path / "data", ["--log-level", "warning"]) as gateway,
        hotindex.sync.Client(gateway.ws) as client,
    ):
        assert client.greeting["type"] == "connected"
        assert client.upsert("m", id="a", vector=[1, 0], metadata={"x": 1}).index_version == 1
        client.patch("m", "a", {"x": 2})
        assert client.get("m", "a").metadata == {"x": 2}
        assert client.search("m", vector=[1, 0]).hits[0].id == "a"
        updates = client.subscribe("m", since=0)
        assert isinstance(next(updates), Reset)
        assert next(updates).document_id == "a"  # type: ignore[union-attr]
        client.delete("m", "a")
        assert next(updates).event_type == "delete"  # type: ignore[union-attr]
        updates.close()  # type: ignore[attr-defined]
        with pytest.raises(hotindex.NotFound):
            client.get("m", "a")
        client.ping()
    with pytest.raises(hotindex.ConnectionLost), hotindex.sync.Client(gateway.ws):
        pass


async def test_a_subscription_follows_a_collection_that_is_made_again(gateway: Gateway) -> None:
    async with Client(gateway.ws, backoff=FAST) as client:
        await client.upsert("m", id="a", vector=[1.0, 0.0])
        async with client.subscribe("m") as updates:
            epoch = updates.epoch
            await drop(gateway, "m")
            with pytest.raises(hotindex.NotFound):
                await anext(updates)
        await client.upsert("m", id="b", vector=[1.0, 0.0])
        async with client.subscribe("m", since=0) as updates:
            assert isinstance(await anext(updates), Reset)
            assert updates.epoch != epoch
            update = await anext(updates)
            assert isinstance(update, Update)
            assert update.document_id == "b"


async def test_a_subscription_given_up_leaves_nothing_behind(client: Client) -> None:
    await client.upsert("m", id="a", vector=[1.0, 0.0])
    begun = asyncio.create_task(client.subscribe("m").__aenter__())
    await asyncio.sleep(0)
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    # At once: what takes back the one given up must not end the next.
    async with client.subscribe("m") as updates:
        await client.ping()
        await client.upsert("m", id="b", vector=[0.0, 1.0])
        update = await anext(updates)
        assert isinstance(update, Update)
        assert update.document_id == "b"


async def test_several_vectors_in_one_search(client: Client) -> None:
    await client.upsert("m", [Document("x", [1.0, 0.0]), Document("y", [0.0, 1.0])])
    found = await client.search_many("m", [[1.0, 0.1], [0.1, 1.0]], k=1, ef=20)
    assert [results.hits[0].id for results in found] == ["x", "y"]

"""The client's transactions: gathered in a block, sent when it ends, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import hotindex
import msgpack
import pytest
from hotindex import Client, Transaction, Update
from websockets.asyncio.server import ServerConnection, serve

from gateway.app import Gateway
from gateway.commands.process import GatewayProcess
from tests.clients.test_client import FAST
from tests.conftest import StartGateway


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    async with Client(gateway.ws) as connected:
        yield connected


async def run(tx: Transaction, fill: Callable[[Transaction], None]) -> None:
    async with tx:
        fill(tx)


async def head(client: Client) -> int:
    return (await client.search("m", vector=[1, 0])).index_version


async def test_what_a_block_gathers_is_applied_together_and_told_to_the_room(gateway: Gateway, client: Client) -> None:
    await client.upsert("m", [hotindex.Document(i, [1, 0]) for i in "abc"])
    async with Client(gateway.ws) as other, other.subscribe("m") as updates:
        async with client.transaction("m", priority=2) as tx:
            metadata = {"n": 1}
            tx.upsert("d", vector=[0, 1], content="text", metadata=metadata)
            metadata["n"] = 2
            tx.patch("a", {"n": 3}, if_version=1)
            tx.delete("b", "nobody")
            tx.upsert(id="c", metadata={"n": 4}, if_version=1)
            assert (len(tx), tx.ack) == (5, None)
        assert tx.ack is not None
        assert [(result.id, result.version, result.status) for result in tx.ack.results] == [
            ("d", 1, "inserted"),
            ("a", 2, "updated"),
            ("b", 2, "deleted"),
            ("nobody", 0, "missing"),
            ("c", 2, "updated"),
        ]
        events = [await anext(updates) for _ in range(5)]
    assert all(isinstance(event, Update) for event in events)
    assert [(event.event_type, event.document_id) for event in events if isinstance(event, Update)] == [
        ("insert", "d"),
        ("update", "a"),
        ("delete", "b"),
        ("update", "c"),
        ("batch_complete", None),
    ]
    assert isinstance(events[-1], Update)
    assert (events[-1].count, events[-1].first_index_version, events[-1].index_version) == (4, 4, tx.ack.index_version)
    assert (await client.get("m", "d")).metadata == {"n": 1}, "as it was at the time of the call"


async def test_an_exception_in_the_block_sends_nothing(client: Client) -> None:
    await client.upsert("m", id="a", vector=[1, 0])
    tx = client.transaction("m")

    def fill(tx: Transaction) -> None:
        tx.delete("a")
        tx.patch("a", {"n": 1 // 0})

    with pytest.raises(ZeroDivisionError):
        await run(tx, fill)
    assert tx.ack is None
    assert await head(client) == 1


async def test_a_refusal_is_raised_at_the_end_of_the_block_and_nothing_was_applied(client: Client) -> None:
    await client.upsert("m", id="a", vector=[1, 0])
    tx = client.transaction("m")

    def conflicting(tx: Transaction) -> None:
        tx.upsert("b", vector=[1, 0])
        tx.patch("a", {"n": 1}, if_version=3)

    def misshapen(tx: Transaction) -> None:
        tx.upsert("b", vector=[1, 0])
        tx.upsert("c", vector=[1, 0, 0])

    with pytest.raises(hotindex.Conflict) as conflict:
        await run(tx, conflicting)
    assert (conflict.value.version, tx.ack) == (1, None)
    with pytest.raises(hotindex.InvalidRequest) as invalid:
        await run(client.transaction("m"), misshapen)
    assert invalid.value.field == "operations[1].vector"
    assert await head(client) == 1


async def test_an_empty_block_sends_nothing(client: Client) -> None:
    async with client.transaction("never made") as tx:
        pass
    assert tx.ack is None


async def test_one_operation_too_many_is_refused_at_the_call_and_nothing_is_sent(client: Client) -> None:
    await client.upsert("m", id="a", vector=[1, 0])

    def fill(tx: Transaction) -> None:
        tx.delete(*("a" for _ in range(10_000)))
        tx.delete("a")

    def fill_and_go_on(tx: Transaction) -> None:
        tx.delete(*("a" for _ in range(9_999)))
        with pytest.raises(hotindex.HotindexError, match="at most 10,000 operations"):
            tx.delete("a", "b")

    with pytest.raises(hotindex.HotindexError, match="at most 10,000 operations"):
        await run(client.transaction("m"), fill)
    tx = client.transaction("m")
    with pytest.raises(hotindex.HotindexError, match="at most 10,000 operations") as too_many:
        await run(tx, fill_and_go_on)
    assert (too_many.value.code, too_many.value.retryable, tx.ack) == ("too_large", False, None)
    assert await head(client) == 1, "not even where the block goes on"


async def test_what_can_not_be_sent_is_refused_at_the_call(client: Client) -> None:
    async with client.transaction("m") as tx:
        with pytest.raises(TypeError, match="datetime"):
            tx.upsert("a", vector=[1, 0], metadata={"at": datetime(2026, 1, 1)})
        tx.upsert("b", vector=[1, 0])
    assert tx.ack is not None
    assert [result.id for result in tx.ack.results] == ["b"]


async def test_operations_outside_the_block_are_refused(client: Client) -> None:
    tx = client.transaction("m")
    with pytest.raises(hotindex.HotindexError, match="inside its with block"):
        tx.delete("a")
    async with tx:
        tx.upsert("a", vector=[1, 0])
    with pytest.raises(hotindex.HotindexError, match="inside its with block"):
        tx.delete("a")
    with pytest.raises(hotindex.HotindexError, match="used once"):
        await tx.__aenter__()


async def test_an_event_id_that_was_applied_is_answered_with_duplicates(client: Client) -> None:
    for status in ("inserted", "duplicate"):
        async with client.transaction("m", event_id="order 7") as tx:
            tx.upsert("a", vector=[1, 0])
        assert tx.ack is not None
        assert [result.status for result in tx.ack.results] == [status]
    assert client.transaction("m").event_id != client.transaction("m").event_id


async def test_a_transaction_that_was_cut_off_is_sent_again_under_its_event_id() -> None:
    """A server that hangs up on the first command."""
    commands: list[dict[str, Any]] = []

    async def hang_up(connection: ServerConnection) -> None:
        await connection.send(msgpack.packb({"type": "connected", "node": "fake"}))
        command = msgpack.unpackb(await connection.recv())
        commands.append(command)
        if len(commands) == 2:
            result = {"id": "a", "version": 1, "status": "duplicate"}
            ack = {"type": "ack", "ref": command["ref"], "collection": "m", "index_version": 1, "results": [result]}
            await connection.send(msgpack.packb(ack))
            await connection.wait_closed()

    async with serve(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Client(f"ws://127.0.0.1:{port}", backoff=FAST) as client, client.transaction("m") as tx:
            tx.delete("a")
        first, again = commands
        assert first["event_id"] == again["event_id"] == tx.event_id
        assert len(tx.event_id) == 32
        assert first["operations"] == again["operations"] == [{"action": "delete", "id": "a"}]
        assert tx.ack is not None


async def test_ten_thousand_texts_are_embedded_and_appear_together(start_gateway: StartGateway) -> None:
    kinds = ("a crew on its way to Saturn", "a giant marlin in the sea", "a restaurant in Naples")
    async with (
        start_gateway() as gateway,
        Client(gateway.ws) as client,
        Client(gateway.ws) as other,
    ):
        await client.upsert("texts", id="first", content="the first of all")
        updates = await other.subscribe("texts", buffer=20_000).__aenter__()
        writing = asyncio.create_task(_write_texts(client, kinds))
        while not writing.done():
            found = await other.search("texts", text="the first of all", k=2)
            assert found.index_version in (1, 10_001)
            assert len(found.hits) == (1 if found.index_version == 1 else 2)
        ack = await writing
        events = [await anext(updates) for _ in range(10_001)]
        assert (len(ack.results), ack.index_version) == (10_000, 10_001)
        last = events[-1]
        assert isinstance(last, Update)
        assert (last.event_type, last.count, last.first_index_version) == ("batch_complete", 10_000, 2)
        found = await client.search("texts", text="a dish of pasta", k=1, include=["content"])
        assert found.hits[0].content is not None
        assert found.hits[0].content.startswith(kinds[2])


async def _write_texts(client: Client, kinds: tuple[str, ...]) -> hotindex.Ack:
    async with client.transaction("texts") as tx:
        for i in range(10_000):
            tx.upsert(f"t{i}", content=f"{kinds[i % len(kinds)]}, told for the {i}th time", metadata={"i": i})
    assert tx.ack is not None
    return tx.ack


def test_the_synchronous_client(tmp_path: Path) -> None:
    with (
        GatewayProcess(tmp_path / "data", ["--log-level", "error"]) as gateway,
        hotindex.sync.Client(gateway.ws) as client,
    ):
        with client.transaction("m", priority=1) as tx:
            tx.upsert("a", vector=[1, 0], metadata={"x": 1})
            tx.patch("a", {"x": 2})
        assert tx.ack is not None
        assert [result.status for result in tx.ack.results] == ["inserted", "updated"]
        with pytest.raises(ZeroDivisionError), client.transaction("m") as tx:
            tx.patch("a", {"x": 1 // 0})
        with pytest.raises(hotindex.NotFound), client.transaction("m") as tx:
            tx.patch("nobody", {"x": 3})
        with client.transaction("m") as tx:
            pass
        assert tx.ack is None
        assert client.get("m", "a").metadata == {"x": 2}


@pytest.mark.parametrize("numbers", [10, 25])
async def test_a_transaction_too_large_for_a_message_is_refused_at_once(
    start_gateway: StartGateway, numbers: int
) -> None:
    """The gateway didn't say which command it had refused unread, or closed the connection, and the client sent it again
    until its time was over.
    """

    def fill(tx: Transaction) -> None:
        for i in range(1000):
            tx.upsert(f"d{i}", vector=[1] * numbers)

    async with start_gateway(max_message_bytes=60_000) as gateway, Client(gateway.ws, backoff=FAST) as client:
        await client.upsert("m", id="a", vector=[1, 0])
        reads = [asyncio.create_task(client.get("m", "a")) for _ in range(20)]
        with pytest.raises(hotindex.InvalidRequest) as refused:
            await run(client.transaction("m"), fill)
        assert refused.value.code == "too_large"
        assert {(await read).id for read in reads} == {"a"}
        assert await head(client) == 1

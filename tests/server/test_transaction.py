"""Transactions on a real gateway, over WebSocket in both encodings and over HTTP: all, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import aiohttp
import msgpack
import pytest
import websockets
from websockets.typing import Subprotocol

from gateway.app import Gateway
from tests.conftest import JsonSocket, json_socket

Transact: TypeAlias = Callable[..., Awaitable[dict[str, Any]]]
"""Sends a transaction on "m", (operations, **fields), and returns the answer."""


@asynccontextmanager
async def over_json(gateway: Gateway) -> AsyncIterator[Transact]:
    async with json_socket(gateway.ws) as socket:

        async def transact(operations: list[Any], **fields: Any) -> dict[str, Any]:
            return await socket.ask(action="transaction", collection="m", operations=operations, **fields)

        yield transact


@asynccontextmanager
async def over_msgpack(gateway: Gateway) -> AsyncIterator[Transact]:
    async with websockets.connect(gateway.ws, subprotocols=[Subprotocol("hotindex.v1.msgpack")]) as connection:
        await connection.recv()

        async def transact(operations: list[Any], **fields: Any) -> dict[str, Any]:
            message = {"action": "transaction", "collection": "m", "operations": operations, **fields}
            await connection.send(msgpack.packb(message))
            answer: dict[str, Any] = msgpack.unpackb(await connection.recv())
            return answer

        yield transact


@asynccontextmanager
async def over_http(gateway: Gateway) -> AsyncIterator[Transact]:
    async with aiohttp.ClientSession(gateway.http) as session:

        async def transact(operations: list[Any], **fields: Any) -> dict[str, Any]:
            body = {"operations": operations, **fields}
            async with session.post("/v1/collections/m/transaction", json=body) as response:
                answer: dict[str, Any] = await response.json()
                assert (response.status == 200) == (answer["type"] == "ack")
                return answer

        yield transact


@pytest.fixture(params=[over_json, over_msgpack, over_http])
async def transact(request: pytest.FixtureRequest, gateway: Gateway) -> AsyncIterator[Transact]:
    async with request.param(gateway) as send:
        yield send


def upsert(document_id: str, vector: Any, **fields: Any) -> dict[str, Any]:
    return {"action": "upsert", "id": document_id, "vector": vector, **fields}


def patch(document_id: str, changes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"action": "patch", "id": document_id, "changes": changes, **fields}


def delete(document_id: str) -> dict[str, Any]:
    return {"action": "delete", "id": document_id}


async def test_operations_of_all_kinds_are_applied_in_order_and_pushed(transact: Transact, socket: JsonSocket) -> None:
    await socket.ask(action="upsert", collection="m", documents=[{"id": i, "vector": [1, 0]} for i in "abc"])
    await socket.ask(action="subscribe", collection="m")
    ack = await transact(
        [
            upsert("d", [0, 1], metadata={"x": 1}),
            patch("d", {"y": 2}),
            patch("a", {"x": 1}, if_version=1),
            delete("b"),
            delete("nobody"),
            upsert("b", [1, 1]),
            upsert("c", [1, 0]),
        ],
        priority=2,
    )
    assert (ack["type"], ack["collection"], ack["index_version"]) == ("ack", "m", 8)
    assert [tuple(result.values()) for result in ack["results"]] == [
        ("d", 1, "inserted"),
        ("d", 2, "updated"),
        ("a", 2, "updated"),
        ("b", 2, "deleted"),
        ("nobody", 0, "missing"),
        ("b", 3, "inserted"),
        ("c", 1, "unchanged"),
    ]
    events = await socket.events(6)
    assert [(event["event_type"], event.get("document_id"), event["index_version"]) for event in events] == [
        ("insert", "d", 4),
        ("update", "d", 5),
        ("update", "a", 6),
        ("delete", "b", 7),
        ("insert", "b", 8),
        ("batch_complete", None, 8),
    ]
    assert (events[-1]["count"], events[-1]["first_index_version"]) == (5, 4)
    assert (await socket.reply(action="get", collection="m", id="d"))["metadata"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("operation", "code", "field"),
    [
        (patch("a", {"x": 1}, if_version=7), "conflict", "operations[1].if_version"),
        (upsert("a", [1, 1], if_version=0), "conflict", "operations[1].if_version"),
        (patch("nobody", {"x": 1}), "not_found", "operations[1].id"),
        (upsert("c", [1, 2, 3]), "invalid_vector", "operations[1].vector"),
        (upsert("c", [0, 0]), "invalid_vector", "operations[1].vector"),
        (upsert("c", ["x"]), "invalid_vector", "operations[1].vector[0]"),
        (upsert("", [1, 0]), "invalid_argument", "operations[1].id"),
        (upsert("c", [1, 0], metadata={"k": {"\0": 1}}), "invalid_argument", "operations[1].metadata.k"),
        (patch("a", {"k": ["\0"]}), "invalid_argument", "operations[1].changes.k[0]"),
        (patch("a", {}, if_version=-1), "invalid_argument", "operations[1].if_version"),
        (delete("x" * 513), "invalid_argument", "operations[1].id"),
        ({"action": "patch", "id": "a"}, "invalid_message", "operations[1].changes"),
        ({"action": "get", "id": "a"}, "invalid_argument", "operations[1].action"),
        ({"id": "a"}, "invalid_message", "operations[1].action"),
        ("a", "invalid_message", "operations[1]"),
    ],
)
async def test_nothing_is_applied_where_one_operation_is_refused(
    transact: Transact, socket: JsonSocket, operation: Any, code: str, field: str
) -> None:
    await socket.ask(action="upsert", collection="m", id="a", vector=[1, 0])
    answer = await transact([upsert("b", [0, 1]), operation, delete("a")], event_id="e")
    assert (answer["type"], answer["code"], answer.get("field")) == ("error", code, field)
    assert (await socket.reply(action="get", collection="m", id="b"))["code"] == "not_found"
    found = await socket.reply(action="search", collection="m", vector=[1, 0], k=9)
    assert ([hit["id"] for hit in found["results"]], found["index_version"]) == (["a"], 1)
    ack = await transact([upsert("b", [0, 1])], event_id="e")
    assert ack["results"][0]["status"] == "inserted", "a refusal doesn't use up the event_id"


async def test_a_repeated_event_id_changes_nothing(transact: Transact, socket: JsonSocket) -> None:
    operations = [upsert("a", [1, 0]), patch("a", {"n": 1}), delete("b")]
    first = await transact(operations, event_id="e")
    again = await transact(operations, event_id="e")
    assert [result["status"] for result in first["results"]] == ["inserted", "updated", "missing"]
    assert again["index_version"] == first["index_version"] == 2
    assert [result["status"] for result in again["results"]] == ["duplicate"] * 3
    assert [result["version"] for result in again["results"]] == [1, 2, 0]


async def test_the_number_of_operations_is_bounded(transact: Transact) -> None:
    for operations in ([], [delete("a")] * 10_001):
        answer = await transact(operations)
        assert answer["code"] == "invalid_argument"
        assert "number of operations" in answer["message"]
    ack = await transact([upsert(f"d{i}", [1, i]) for i in range(10_000)])
    assert (len(ack["results"]), ack["index_version"]) == (10_000, 10_000)


async def test_the_first_write_to_a_collection_may_be_a_transaction(transact: Transact, socket: JsonSocket) -> None:
    refused = await transact([upsert("a", [1, 0]), patch("b", {"x": 1})])
    assert (refused["code"], refused["field"]) == ("not_found", "operations[1].id")
    refused = await transact([upsert("a", [1, 0]), {"action": "upsert", "id": "b"}])
    assert (refused["code"], refused["field"]) == ("invalid_argument", "operations[1].vector")
    assert (await transact([delete("a")]))["code"] == "not_found"
    assert (await socket.ask(action="get", collection="m", id="a"))["field"] == "collection", "none was made"
    ack = await transact([upsert("a", [1, 0]), {"action": "upsert", "id": "a", "metadata": {"x": 1}}])
    assert [result["version"] for result in ack["results"]] == [1, 2]


async def test_texts_are_embedded_before_anything_is_seen(transact: Transact, socket: JsonSocket) -> None:
    ack = await transact(
        [
            {"action": "upsert", "id": "a", "content": "a film about the sea"},
            {"action": "upsert", "id": "b", "metadata": {"name": "a shoe"}},
            patch("b", {"name": "an umbrella"}),
            patch("a", {}, content="a film about space travel"),
        ]
    )
    assert [result["version"] for result in ack["results"]] == [1, 1, 2, 2]
    found = await socket.ask(action="search", collection="m", text="astronauts", k=1)
    assert found["results"][0]["id"] == "a"
    found = await socket.ask(action="search", collection="m", text="rain", k=1)
    assert found["results"][0]["id"] == "b"


async def test_a_search_never_sees_half_of_a_transaction(transact: Transact, socket: JsonSocket) -> None:
    """A hundred documents carry one number; each transaction gives them all the next."""
    count = 100

    def turn(number: int) -> list[dict[str, Any]]:
        return [upsert(f"d{i}", [1, i + number / 100], metadata={"n": number}) for i in range(count)]

    await transact(turn(0))
    ended = asyncio.Event()

    async def search() -> int:
        seen: set[int] = set()
        while not ended.is_set():
            found = await socket.ask(action="search", collection="m", vector=[1, 1], k=2 * count)
            numbers = {hit["metadata"]["n"] for hit in found["results"]}
            assert (len(found["results"]), len(numbers)) == (count, 1)
            assert found["index_version"] == count * (numbers.pop() + 1)
            seen.add(found["index_version"])
        return len(seen)

    searching = asyncio.create_task(search())
    for number in range(1, 40):
        assert (await transact(turn(number)))["type"] == "ack"
    ended.set()
    assert await searching > 5

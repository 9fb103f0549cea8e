"""The contract of WebSocket clients, spoken with nothing but a WebSocket and JSON."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from typing import Any

import aiohttp
import msgpack
import numpy as np
import pytest
import websockets
from websockets.frames import Frame, Opcode
from websockets.typing import Subprotocol

from gateway.app import Gateway
from tests.conftest import JsonSocket, StartGateway, json_socket

MSGPACK = Subprotocol("hotindex.v1.msgpack")
JSON = Subprotocol("hotindex.v1.json")


async def test_the_greeting_names_node_and_protocol(socket: JsonSocket) -> None:
    greeting = socket.greeting
    assert greeting.pop("client_id")
    assert greeting.pop("message")
    assert greeting == {"type": "connected", "node": "test", "protocol": 1, "ping_interval_s": 25.0}


async def test_subprotocols_choose_the_encoding(gateway: Gateway) -> None:
    async with websockets.connect(f"{gateway.ws}/any/path", subprotocols=[MSGPACK]) as connection:
        assert connection.subprotocol == MSGPACK
        assert msgpack.unpackb(await connection.recv())["type"] == "connected"
    async with websockets.connect(gateway.ws, subprotocols=[JSON, MSGPACK]) as connection:
        assert connection.subprotocol == JSON
    async with websockets.connect(gateway.ws, subprotocols=[Subprotocol("other")]) as connection:
        assert connection.subprotocol is None
        assert json.loads(await connection.recv())["type"] == "connected"


async def test_upsert_get_search_patch_delete(socket: JsonSocket) -> None:
    ack = await socket.ask(
        action="upsert", collection="m", id="a", vector=[1, 0], metadata={"x": 1}, content="text", ref=1
    )
    assert ack == {
        "type": "ack",
        "ref": 1,
        "collection": "m",
        "index_version": 1,
        "results": [{"id": "a", "version": 1, "status": "inserted"}],
    }
    ack = await socket.ask(action="upsert", collection="m", documents=[{"id": "b", "vector": [0, 2]}, {"id": "a"}])
    assert [(item["version"], item["status"]) for item in ack["results"]] == [(1, "inserted"), (1, "unchanged")]
    found = await socket.ask(action="search", collection="m", vector=[0, 1], k=5, ref="s")
    assert found == {
        "type": "results",
        "ref": "s",
        "collection": "m",
        "index_version": 2,
        "results": [
            {"id": "b", "score": 1.0, "version": 1, "metadata": {}},
            {"id": "a", "score": 0.0, "version": 1, "metadata": {"x": 1}},
        ],
    }
    ack = await socket.ask(action="patch", collection="m", id="a", changes={"y": 2, "x": None})
    assert ack["results"] == [{"id": "a", "version": 2, "status": "updated"}]
    document = await socket.ask(action="get", collection="m", id="a", include=["content", "vector"])
    assert document.pop("updated_at").endswith("+00:00")
    assert document == {
        "type": "document",
        "collection": "m",
        "id": "a",
        "version": 2,
        "metadata": {"y": 2},
        "content": "text",
        "vector": [1.0, 0.0],
    }
    ack = await socket.ask(action="delete", collection="m", ids=["a", "nobody"])
    assert [item["status"] for item in ack["results"]] == ["deleted", "missing"]
    assert (await socket.ask(action="get", collection="m", id="a"))["code"] == "not_found"


async def test_vectors_travel_as_bytes_in_messagepack(gateway: Gateway) -> None:
    async with websockets.connect(gateway.ws, subprotocols=[MSGPACK]) as connection:
        await connection.recv()

        async def ask(**message: Any) -> Any:
            await connection.send(msgpack.packb(message))
            return msgpack.unpackb(await connection.recv())

        blob = np.array([1, 2, 3], "<f4").tobytes()
        assert (await ask(action="upsert", collection="m", id="a", vector=blob))["type"] == "ack"
        assert (await ask(action="get", collection="m", id="a", include=["vector"]))["vector"] == blob
        results = (await ask(action="search", collection="m", vector=[1, 2, 3], include=["vector"]))["results"]
        assert results[0]["vector"] == blob


async def test_a_vector_may_be_base64_in_json(socket: JsonSocket) -> None:
    text = base64.b64encode(np.array([3, 4], "<f4").tobytes()).decode()
    await socket.ask(action="upsert", collection="m", id="a", vector=text)
    assert (await socket.ask(action="search", collection="m", vector=[6, 8]))["results"][0]["score"] == pytest.approx(1)


async def test_search_in_all_its_forms(socket: JsonSocket) -> None:
    documents = [
        {"id": f"d{i}", "vector": [math.cos(i / 10), math.sin(i / 10)], "metadata": {"n": i}} for i in range(30)
    ]
    await socket.ask(action="upsert", collection="m", documents=documents)

    async def ids(**search: Any) -> list[str]:
        reply = await socket.ask(action="search", collection="m", **search)
        return [item["id"] for item in reply["results"]]

    assert await ids(vector=[1, 0], k=3) == ["d0", "d1", "d2"]
    assert await ids(vector=[1, 0], k=3, exact=True) == ["d0", "d1", "d2"]
    assert await ids(id="d0", k=2) == ["d1", "d2"]
    assert await ids(vector=[1, 0], k=2, filter={"n": {"$gte": 10}}) == ["d10", "d11"]
    assert await ids(vector=[1, 0], filter={"n": 99}) == []
    assert len(await ids(vector=[1, 0])) == 10
    assert len(await ids(vector=[1, 0], k=1000)) == 30


async def test_text_is_embedded_and_found_by_meaning(socket: JsonSocket) -> None:
    for document_id, content in [("1", "a boat on the ocean"), ("2", "a spaceship near Mars"), ("3", "cooking pasta")]:
        await socket.ask(action="upsert", id=document_id, content=content)
    reply = await socket.ask(action="search", text="sailing the sea", k=1, include=["content"])
    assert reply["collection"] == "default"
    assert reply["results"][0]["content"] == "a boat on the ocean"


async def test_min_index_version_waits_for_it(start_gateway: StartGateway) -> None:
    async with start_gateway(read_wait_s=0.05) as gateway, json_socket(gateway.ws) as socket:
        await socket.ask(action="upsert", collection="m", id="a", vector=[1, 0])
        reply = await socket.ask(action="search", collection="m", vector=[1, 0], min_index_version=1)
        assert reply["index_version"] == 1
        reply = await socket.ask(action="search", collection="m", vector=[1, 0], min_index_version=2)
        assert (reply["code"], reply["retryable"], reply["field"]) == ("overloaded", True, "min_index_version")
    async with start_gateway(read_wait_s=30.0) as gateway, json_socket(gateway.ws) as socket:
        await socket.send({"action": "search", "collection": "m", "vector": [1, 0], "min_index_version": 2, "ref": "s"})
        await socket.send({"action": "upsert", "collection": "m", "id": "b", "vector": [1, 0], "ref": "w"})
        replies = {reply["ref"]: reply for reply in (await socket.receive(), await socket.receive())}
        assert replies["s"]["index_version"] == 2
        assert len(replies["s"]["results"]) == 2


async def test_min_score_leaves_out_what_scores_less(socket: JsonSocket) -> None:
    documents = [{"id": f"d{i}", "vector": [1, i]} for i in range(4)]
    await socket.ask(action="upsert", collection="m", documents=documents)
    found = await socket.ask(action="search", collection="m", vector=[1, 0], k=10)
    scores = [hit["score"] for hit in found["results"]]
    some = await socket.ask(action="search", collection="m", vectors=[[1, 0], [-1, 0]], k=10, min_score=scores[1])
    assert [[hit["id"] for hit in hits] for hits in some["results"]] == [["d0", "d1"], []]
    refused = await socket.ask(action="search", collection="m", user_id="ann", min_score=0.0)
    assert (refused["code"], refused["field"]) == ("invalid_argument", "min_score")


async def test_if_version_and_event_id(socket: JsonSocket) -> None:
    write: dict[str, Any] = {"action": "upsert", "collection": "m", "id": "a", "vector": [1, 0]}
    assert (await socket.ask(**write, if_version=0))["results"][0]["status"] == "inserted"
    conflict = await socket.ask(**write, if_version=0)
    assert (conflict["code"], conflict["version"], conflict["retryable"]) == ("conflict", 1, False)
    first = await socket.ask(**{**write, "metadata": {"x": 1}, "event_id": "e1"})
    again = await socket.ask(**{**write, "metadata": {"x": 2}, "event_id": "e1"})
    assert again["results"] == [{"id": "a", "version": 2, "status": "duplicate"}]
    assert again["index_version"] == first["index_version"]


async def test_one_bad_document_leaves_out_the_whole_command(socket: JsonSocket) -> None:
    await socket.ask(action="upsert", collection="m", id="a", vector=[1, 0])
    bad = [{"id": "b", "vector": [1, 1]}, {"id": "a", "vector": [2, 2], "if_version": 9}]
    assert (await socket.ask(action="upsert", collection="m", documents=bad))["code"] == "conflict"
    bad = [{"id": "b", "vector": [1, 1]}, {"id": "c", "vector": [0, 0]}]
    error = await socket.ask(action="upsert", collection="m", documents=bad)
    assert (error["code"], error["field"]) == ("invalid_vector", "documents[1].vector")
    assert (await socket.ask(action="get", collection="m", id="b"))["code"] == "not_found"


async def test_the_room_in_order_and_with_a_filter(gateway: Gateway) -> None:
    async with json_socket(gateway.ws) as producer, json_socket(gateway.ws) as everyone, json_socket(gateway.ws) as few:
        await producer.ask(action="upsert", collection="m", id="a", vector=[1, 0])
        subscribed = await everyone.ask(action="subscribe", collection="m")
        assert subscribed.pop("epoch")
        assert subscribed == {"type": "subscribed", "collection": "m", "index_version": 1, "recovered": False}
        await few.ask(action="subscribe", collection="m", filter={"kind": "x"}, include=["content", "vector"])
        await producer.ask(action="upsert", collection="m", id="b", vector=[1, 0], metadata={"kind": "x"}, content="C")
        await producer.ask(action="patch", collection="m", id="b", changes={"kind": "y"})
        await producer.ask(action="delete", collection="m", id="a")
        events = await everyone.events(3)
        assert [event["event_type"] for event in events] == ["insert", "update", "delete"]
        assert [event["index_version"] for event in events] == [2, 3, 4]
        inserted, left = await few.events(2)
        assert (inserted["content"], inserted["vector"], inserted["metadata"]) == ("C", [1.0, 0.0], {"kind": "x"})
        assert left["left"] is True


async def test_resume_misses_nothing_under_load(gateway: Gateway) -> None:
    """A subscriber that comes and goes while others write ends with the net state, nothing twice."""
    async with json_socket(gateway.ws) as producer:
        await producer.ask(action="upsert", collection="m", id="d0", vector=[1, 0])

        async def produce() -> int:
            last = 0
            for i in range(300):
                last = (await producer.ask(action="upsert", collection="m", id=f"d{i % 20}", vector=[1, i]))[
                    "index_version"
                ]
            return last

        producing = asyncio.create_task(produce())
        since, held = 0, {}
        while True:
            finished = producing.done()
            async with json_socket(gateway.ws) as visitor:
                subscribed = await visitor.reply(action="subscribe", collection="m", since=since)
                assert subscribed["recovered"]
                await visitor.send({"action": "ping"})
                ponged = False
                while since < subscribed["index_version"] or not ponged:
                    message = await visitor.receive()
                    ponged = ponged or message["type"] == "pong"
                    if message["type"] != "index_update":
                        continue
                    event = message["event"]
                    assert event["index_version"] > since
                    since = event["index_version"]
                    held[event["document_id"]] = event["version"]
            if finished:
                break
        assert since == await producing
        for document_id, version in held.items():
            assert (await producer.ask(action="get", collection="m", id=document_id))["version"] == version
        assert len(held) == 20


async def test_positions_that_can_not_be_resumed_from(socket: JsonSocket) -> None:
    await socket.ask(action="upsert", collection="m", id="a", vector=[1, 0])
    foreign = await socket.ask(action="subscribe", collection="m", since=1, epoch="another life")
    assert foreign["recovered"] is False
    future = await socket.ask(action="subscribe", collection="m", since=99)
    assert future["recovered"] is False
    epoch = future["epoch"]
    assert (await socket.ask(action="subscribe", collection="m", since=1, epoch=epoch))["recovered"] is True
    over = await socket.ask(action="subscribe", collection="m", since=0, epoch="another life")
    assert over["recovered"] is True
    assert await socket.receive() == {"type": "reset", "collection": "m", "epoch": epoch}
    assert [event["document_id"] for event in await socket.events(1)] == ["a"]


async def test_unsubscribed_means_silence(socket: JsonSocket) -> None:
    await socket.ask(action="upsert", collection="m", id="a", vector=[1, 0])
    await socket.ask(action="subscribe", collection="m")
    assert await socket.ask(action="unsubscribe", collection="m") == {"type": "unsubscribed", "collection": "m"}
    assert (await socket.ask(action="delete", collection="m", id="a"))["type"] == "ack"
    assert (await socket.ask(action="ping"))["type"] == "pong"
    assert (await socket.ask(action="unsubscribe", collection="never"))["type"] == "unsubscribed"


async def test_existing_producers_are_understood(socket: JsonSocket) -> None:
    data = {"name": "Trail shoe", "description": "", "category": "Shoes", "tags": ["run", "trail"], "price": 90}
    ack = await socket.ask(type="product_created", product_id="p1", data=data)
    assert (ack["collection"], ack["results"][0]["status"]) == ("default", "inserted")
    document = await socket.ask(action="get", id="p1", include=["content", "vector"])
    assert document["content"] == "Trail shoe | Shoes | run, trail"
    assert document["metadata"] == data
    await socket.ask(type="product_updated", product_id="p1", changes={"price": 80})
    cheaper = await socket.ask(action="get", id="p1", include=["vector"])
    assert (cheaper["metadata"]["price"], cheaper["vector"]) == (80, document["vector"])
    await socket.ask(type="product_updated", product_id="p1", changes={"name": "Rain boot"})
    renamed = await socket.ask(action="get", id="p1", include=["content", "vector"])
    assert renamed["content"] == "Rain boot | Shoes | run, trail"
    assert renamed["vector"] != document["vector"]
    assert (await socket.ask(type="product_updated", product_id="p9", changes={}))["code"] == "not_found"
    assert (await socket.ask(type="product_deleted", product_id="p1"))["results"][0]["status"] == "deleted"
    assert (await socket.ask(type="ping"))["type"] == "pong"


BAD: list[tuple[bytes, str]] = [
    (b"{broken", "invalid_message"),
    (b"\xff\xfe\xfd", "invalid_message"),
    (b'{"action":"get","collection":"m","id":"\xff"}', "invalid_message"),
    (b"[1,2]", "invalid_message"),
    (b"{}", "invalid_message"),
    (b'{"action":"fly"}', "unknown_action"),
    (b'{"action":"get","collection":"m","id":5}', "invalid_message"),
    (b'{"action":"search","collection":"m","vector":"%%"}', "invalid_vector"),
    (b'{"action":"search","collection":"m","vector":[1,2,3]}', "invalid_vector"),
    (b'{"action":"search","collection":"m","vector":[0,0]}', "invalid_vector"),
    (b'{"action":"search","collection":"m","vector":[1,null]}', "invalid_vector"),
    (b'{"action":"search","collection":"m","vector":"AADAfwAAgD8="}', "invalid_vector"),
    (b'{"action":"upsert","collection":"m","id":"a","vector":[1,2,3]}', "invalid_vector"),
    (b'{"action":"upsert","collection":"m","id":"a","vector":[0,0]}', "invalid_vector"),
    (b'{"action":"upsert","collection":"new","id":"a","vector":[0,0]}', "invalid_vector"),
    (b'{"action":"upsert","collection":"m","id":"a","vector":"AADAfwAAgD8="}', "invalid_vector"),
    (b'{"action":"upsert","collection":"m","id":"a","vector":"AAA="}', "invalid_vector"),
    (b'{"action":"upsert","collection":"m","id":"b"}', "invalid_argument"),
    (b'{"action":"upsert","collection":"m","id":"b","content":"text"}', "invalid_argument"),
    (b'{"action":"upsert","collection":"new","id":"b","metadata":{"x":1}}', "invalid_argument"),
    (b'{"action":"upsert","collection":"m"}', "invalid_argument"),
    (b'{"action":"upsert","collection":"m","documents":[]}', "invalid_argument"),
    (b'{"action":"upsert","collection":"m","id":"a","documents":[{"id":"a"}]}', "invalid_argument"),
    (b'{"action":"upsert","collection":"m","id":"","vector":[1,2]}', "invalid_argument"),
    (b'{"action":"upsert","collection":"m","id":"' + b"x" * 513 + b'","vector":[1,2]}', "invalid_argument"),
    (b'{"action":"upsert","collection":"m","id":"a","if_version":-1}', "invalid_argument"),
    (b'{"action":"upsert","collection":"m","id":"a","metadata":{"x":99999999999999999999}}', "invalid_argument"),
    (b'{"action":"upsert","collection":"m","id":"a","content":"' + b"x" * (1 << 20) + b'xx"}', "too_large"),
    (b'{"action":"ping","padding":"' + b"x" * (2 << 20) + b'"}', "too_large"),
    (b'{"action":"ping","nested":' + b"[" * 100_000, "too_large"),
    (b'{"action":"patch","collection":"m","id":"nobody","changes":{}}', "not_found"),
    (b'{"action":"patch","collection":"m","id":"a"}', "invalid_message"),
    (b'{"action":"delete","collection":"m"}', "invalid_argument"),
    (b'{"action":"delete","collection":"m","id":"a","ids":["a"]}', "invalid_argument"),
    (b'{"action":"delete","collection":"unknown","id":"a"}', "not_found"),
    (b'{"action":"get","collection":"unknown","id":"a"}', "not_found"),
    (b'{"action":"search","collection":"unknown","vector":[1,2]}', "not_found"),
    (b'{"action":"subscribe","collection":"unknown"}', "not_found"),
    (b'{"action":"subscribe","collection":"m","since":-1}', "invalid_argument"),
    (b'{"action":"subscribe","collection":"m","filter":{"$foo":1}}', "invalid_filter"),
    (b'{"action":"search","collection":"m","vector":[1,2],"filter":{"a":{"$lt":null}}}', "invalid_filter"),
    (b'{"action":"search","collection":"m","vector":[1,2],"filter":"x"}', "invalid_filter"),
    (b'{"action":"search","collection":"m","vector":[1,2],"k":0}', "invalid_argument"),
    (b'{"action":"search","collection":"m","vector":[1,2],"k":1001}', "invalid_argument"),
    (b'{"action":"search","collection":"m","vector":[1,2],"k":1e3}', "invalid_message"),
    (b'{"action":"search","collection":"m"}', "invalid_argument"),
    (b'{"action":"search","collection":"m","vector":[1,2],"id":"a"}', "invalid_argument"),
    (b'{"action":"search","collection":"m","text":"words"}', "invalid_argument"),
    (b'{"action":"search","collection":"m","id":"nobody"}', "not_found"),
    *(
        (json.dumps({"action": action, "collection": name, "id": "a", "vector": [1, 2]}).encode(), "invalid_argument")
        for action in ("upsert", "get", "search", "subscribe")
        for name in ("../x", "", "a" * 200, ".hidden", "a/b", "é", "a\0")
    ),
]


async def test_whatever_is_wrong_is_told_changes_nothing_and_the_connection_survives(
    start_gateway: StartGateway,
) -> None:
    async with start_gateway(max_message_bytes=2 << 20) as gateway, json_socket(gateway.ws) as socket:
        await socket.ask(action="upsert", collection="m", id="a", vector=[1, 0], metadata={"x": 1})
        for data, code in BAD:
            # As a text frame, also where it is no UTF-8, which a polite client could not send.
            socket.connection.transport.write(Frame(Opcode.TEXT, data).serialize(mask=True))
            reply = await socket.receive()
            assert (reply["type"], reply.get("code")) == ("error", code), (data[:100], reply)
            assert reply["message"]
            assert reply["retryable"] is False
        found = await socket.ask(action="get", collection="m", id="a")
        assert (found["version"], found["metadata"]) == (1, {"x": 1})
        results = await socket.ask(action="search", collection="m", vector=[1, 0])
        assert (results["index_version"], len(results["results"])) == (1, 1)
        assert (await socket.ask(action="get", collection="new", id="a"))["code"] == "not_found", "not even created"


BAD_MSGPACK: list[tuple[bytes, str]] = [
    (b"\xc1", "invalid_message"),
    (b"", "invalid_message"),
    (b"\x81\xa6action", "invalid_message"),
    (b"\x81\xa6action\xa1\xff", "invalid_message"),
    (b"\x91" * 100_000, "too_large"),
    (msgpack.packb({"action": "upsert", "id": "a", "vector": [1.0, math.nan]}), "invalid_vector"),
    (msgpack.packb({"action": "upsert", "id": "a", "vector": b"\x00" * 8}), "invalid_vector"),
    (msgpack.packb({"action": "upsert", "id": "a", "vector": b"\x00" * 7}), "invalid_vector"),
    (msgpack.packb({"action": "upsert", "id": "a", "vector": "text"}), "invalid_vector"),
    (msgpack.packb({"action": "upsert", "id": "a", "metadata": {"x": b"bytes"}}), "invalid_argument"),
    (msgpack.packb({"action": "upsert", "id": "a", "metadata": {"x": math.inf}}), "invalid_argument"),
    (msgpack.packb({"action": "upsert", "id": "a", "metadata": {1: 2}}), "invalid_message"),
    (msgpack.packb({"action": "upsert", "id": "a", "metadata": {"x": {1: 2}}}), "invalid_argument"),
    (msgpack.packb({"action": "upsert", "id": "a", "metadata": {"x": msgpack.Timestamp(1)}}), "invalid_argument"),
]


async def test_the_same_holds_for_messagepack(gateway: Gateway) -> None:
    async with websockets.connect(gateway.ws, subprotocols=[MSGPACK]) as connection:
        await connection.recv()
        await connection.send(msgpack.packb({"action": "upsert", "id": "a", "vector": [1, 0]}))
        await connection.recv()
        for data, code in BAD_MSGPACK:
            await connection.send(data)
            reply = msgpack.unpackb(await connection.recv())
            assert reply.get("code") == code, (data[:100], reply)
        await connection.send(msgpack.packb({"action": "get", "id": "a"}))
        assert msgpack.unpackb(await connection.recv())["version"] == 1


async def test_a_frame_far_over_the_limit_closes_with_1009(start_gateway: StartGateway) -> None:
    async with start_gateway(max_message_bytes=1024) as gateway, json_socket(gateway.ws) as socket:
        await socket.connection.send("x" * 10_000)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_a_fragmented_message_is_one_message(socket: JsonSocket) -> None:
    await socket.connection.send(['{"action":', '"pi', 'ng"}'])
    assert (await socket.receive())["type"] == "pong"


async def test_a_client_that_answers_no_ping_is_closed_with_4408(start_gateway: StartGateway) -> None:
    async with (
        start_gateway(ping_interval_s=0.1) as gateway,
        json_socket(gateway.ws) as polite,
        websockets.connect(gateway.ws) as deaf,
    ):
        await deaf.recv()
        deaf.transport.pause_reading()
        while await metric(gateway, "hotindex_connections") > 1:
            await asyncio.sleep(0.05)
        assert (await polite.ask(action="ping"))["type"] == "pong"
        deaf.transport.resume_reading()
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await deaf.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4408


async def metric(gateway: Gateway, name: str) -> float:
    async with aiohttp.ClientSession(gateway.http) as session, session.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


async def test_a_stop_answers_what_is_under_way_and_closes_with_1001(start_gateway: StartGateway) -> None:
    async with start_gateway() as gateway:
        connecting = json_socket(gateway.ws)
        socket = await connecting.__aenter__()
        for i in range(50):
            await socket.send({"action": "upsert", "collection": "m", "id": f"d{i}", "vector": [1, i], "ref": i})
        await socket.reply(action="ping")
    with pytest.raises(websockets.ConnectionClosed) as closed:
        await socket.events(1)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
    async with start_gateway() as gateway, json_socket(gateway.ws) as again:
        found = await again.ask(action="search", collection="m", vector=[1, 0], k=100)
        assert len(found["results"]) == 50, "what was taken in is applied"


async def test_several_vectors_in_one_search(socket: JsonSocket) -> None:
    await socket.ask(
        action="upsert", collection="m", documents=[{"id": "x", "vector": [1, 0]}, {"id": "y", "vector": [0, 1]}]
    )
    answer = await socket.ask(action="search", collection="m", vectors=[[1, 0.1], [0.1, 1]], k=1, ef=10)
    assert [[hit["id"] for hit in hits] for hits in answer["results"]] == [["x"], ["y"]]
    one = await socket.ask(action="search", collection="m", vectors=[[1, 0]], k=1)
    assert [[hit["id"] for hit in hits] for hits in one["results"]] == [["x"]]
    wrong = await socket.ask(action="search", collection="m", vectors=[[1, 0], [1]])
    assert (wrong["code"], wrong["field"]) == ("invalid_vector", "vectors[1]")
    for fields, field in (({"vectors": []}, "the number of vectors"), ({"vector": [1, 0], "ef": 0}, "ef")):
        refused = await socket.ask(action="search", collection="m", **fields)
        assert (refused["code"], refused["field"]) == ("invalid_argument", field)


async def test_a_path_without_end_is_refused(socket: JsonSocket) -> None:
    await socket.ask(action="upsert", collection="m", id="x", vector=[1, 0])
    for path in (".".join(["a"] * 20_000), "a" * 2000):
        answer = await socket.ask(action="search", collection="m", vector=[1, 0], filter={path: 1})
        assert (answer["code"], answer["field"]) == ("invalid_filter", "filter")
        assert len(answer["message"]) < 300


async def test_the_largest_filters_run(socket: JsonSocket) -> None:
    path = ".".join("abcdefghijklmnop" * 2)
    await socket.ask(action="upsert", collection="m", id="x", vector=[1, 0], metadata={"a": {"b": 1}})
    answer = await socket.ask(action="search", collection="m", vector=[1, 0], filter={path: {"$in": list(range(250))}})
    assert answer["results"] == []


async def test_subscribers_of_a_dropped_collection_are_told(gateway: Gateway) -> None:
    async with json_socket(gateway.ws) as here, json_socket(gateway.ws) as behind:
        await here.ask(action="upsert", collection="m", id="x", vector=[1, 0])
        await here.ask(action="subscribe", collection="m")
        await behind.ask(action="subscribe", collection="m", since=0)
        await drop(gateway, "m")
        assert await here.receive() == {"type": "unsubscribed", "collection": "m"}
        while (await behind.receive())["type"] != "unsubscribed":
            pass
        made = await here.ask(action="upsert", collection="m", id="x", vector=[1, 0])
        assert made["type"] == "ack", "and no push of the new collection's"
        subscribed = await here.ask(action="subscribe", collection="m", since=0)
        assert (subscribed["index_version"], subscribed["recovered"]) == (1, True)


async def drop(gateway: Gateway, collection: str) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as http, http.delete(f"{gateway.http}/v1/collections/{collection}") as response:
        assert response.status == 200

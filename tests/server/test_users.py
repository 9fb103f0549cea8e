"""Users, spoken with nothing but a WebSocket: what they do is learned, and what is recommended follows."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import aiohttp
import numpy as np
import pytest

from gateway.app import Gateway
from gateway.node.datadir import DataDirectory
from tests.conftest import JsonMessage, JsonSocket, StartGateway, json_socket
from tests.server.test_slow import Closing

DIMENSION = 8


def axis(number: int, lean: float = 0.0) -> list[float]:
    """Return a vector near the axis `number`, leaning a little to the next."""
    vector = np.zeros(DIMENSION, np.float32)
    vector[number], vector[(number + 1) % DIMENSION] = 1.0, lean
    return vector.tolist()


async def add_items(socket: JsonSocket, groups: int = 4, each: int = 6) -> None:
    """Add `each` items near each of some axes: g0-0, g0-1, ..., g1-0, ..."""
    documents = [
        {"id": f"g{g}-{i}", "vector": axis(g, 0.01 * i), "metadata": {"category": f"c{g}", "number": i}}
        for g in range(groups)
        for i in range(each)
    ]
    reply = await socket.reply(action="upsert", collection="items", documents=documents)
    assert reply["type"] == "ack"


async def did(socket: JsonSocket, user: str, action: str, item: str, **more: Any) -> JsonMessage:
    return await socket.reply(
        type="user_interaction", collection="items", user_id=user, action=action, item_id=item, **more
    )


async def recommended(socket: JsonSocket, user: str, **more: Any) -> list[str]:
    reply = await socket.reply(action="search", collection="items", user_id=user, **more)
    assert reply["type"] == "results", reply
    return [item["id"] for item in reply["results"]]


async def test_an_interaction_is_acknowledged_and_turns_recommendations_to_the_item(socket: JsonSocket) -> None:
    await add_items(socket)
    for item in ("g1-0", "g1-1", "g1-2"):
        ack = await did(socket, "ann", "purchase", item)
        assert (ack["type"], ack["collection"]) == ("ack", "items")
        assert [(one["id"], one["status"]) for one in ack["results"]] == [
            ("ann", "inserted" if item == "g1-0" else "updated")
        ]
        assert ack["index_version"] == 24, "of the documents nothing has changed"
    found = await recommended(socket, "ann", k=3, diversity=0)
    assert set(found) == {"g1-3", "g1-4", "g1-5"}, "near what was bought, and not seen"


async def test_an_event_id_counts_once(socket: JsonSocket, gateway: Gateway) -> None:
    await add_items(socket)
    first = await did(socket, "ann", "click", "g1-0", event_id="e1")
    again = await did(socket, "ann", "click", "g1-0", event_id="e1")
    assert (first["results"][0]["status"], again["results"][0]["status"]) == ("inserted", "duplicate")
    assert again["results"][0]["version"] == first["results"][0]["version"]
    async with aiohttp.ClientSession(gateway.http) as http, http.get("/v1/users/ann?collection=items") as reply:
        user = await reply.json()
    assert user["evidence"] == pytest.approx(0.3, abs=1e-4), "of one click"


async def test_profiles_are_there_after_a_restart(start_gateway: StartGateway) -> None:
    async with start_gateway() as gateway, json_socket(gateway.ws) as socket:
        await add_items(socket)
        for item in ("g2-0", "g2-1"):
            await did(socket, "ann", "like", item)
        before = await recommended(socket, "ann", k=5)
    async with start_gateway() as gateway, json_socket(gateway.ws) as socket:
        assert await recommended(socket, "ann", k=5) == before


async def test_deleted_items_take_no_place_among_the_popular_ones_after_a_restart(start_gateway: StartGateway) -> None:
    deleted = [f"old-{number}" for number in range(150)]
    async with start_gateway() as gateway, json_socket(gateway.ws) as socket:
        await add_items(socket)
        documents = [{"id": item, "vector": axis(0)} for item in deleted]
        assert (await socket.reply(action="upsert", collection="items", documents=documents))["type"] == "ack"
        for number, item in enumerate(deleted):
            await did(socket, f"u{number}", "purchase", item)
        await did(socket, "ann", "view", "g1-0")
        await socket.reply(action="delete", collection="items", ids=deleted)
        # So many changes since that no item counts as new.
        for number in range(101):
            many = [{"id": f"g0-{n % 6}", "metadata": {"number": (number, n)}} for n in range(10)]
            await socket.reply(action="upsert", collection="items", documents=many)
        before = await recommended(socket, "nobody", k=1, diversity=0)
    assert before == ["g1-0"]
    async with start_gateway() as gateway, json_socket(gateway.ws) as socket:
        assert await recommended(socket, "nobody", k=1, diversity=0) == before


async def test_who_is_new_gets_what_is_popular(socket: JsonSocket) -> None:
    await add_items(socket)
    for number in range(8):
        await did(socket, f"u{number}", "purchase", "g3-5")
    for number in range(4):
        await did(socket, f"v{number}", "purchase", "g0-2")
    assert (await recommended(socket, "nobody", k=2)) == ["g3-5", "g0-2"]


async def test_a_filter_hides_items(socket: JsonSocket) -> None:
    await add_items(socket)
    await did(socket, "ann", "purchase", "g1-0")
    found = await recommended(socket, "ann", k=4, filter={"category": "c2"})
    assert found
    assert all(item.startswith("g2-") for item in found)


async def test_a_user_event_is_answered_and_then_tells_what_is_recommended(socket: JsonSocket) -> None:
    await add_items(socket)
    await socket.send(
        {
            "type": "user_event",
            "collection": "items",
            "user_id": "ann",
            "event_type": "click",
            "item_id": "g1-0",
            "ref": 1,
        }
    )
    result, update = await socket.receive(), await socket.receive()
    assert result == {
        "type": "sync_result",
        "ref": 1,
        "success": True,
        "latency_ms": result["latency_ms"],
        "recommendations_updated": True,
    }
    assert result["latency_ms"] > 0
    assert (update["type"], update["user_id"], update["collection"]) == ("recommendation_update", "ann", "items")
    assert len(update["recommendations"]) == len(update["scores"]) == 10
    assert "g1-0" not in update["recommendations"]
    assert update["recommendations"] == await recommended(socket, "ann")


async def test_an_unknown_item_is_added_from_its_features(socket: JsonSocket) -> None:
    features = {"name": "Alien", "category": "horror", "tags": "space"}
    reply = await socket.reply(
        type="user_event", user_id="ann", event_type="purchase", item_id="m1", item_features=features
    )
    assert reply["type"] == "sync_result", reply
    document = await socket.reply(action="get", id="m1")
    assert document["metadata"] == features


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"item_id": "nothing"}, "not_found", "item_id"),
        ({"action": "buy"}, "invalid_argument", "action"),
        ({"action": "rate", "value": 11}, "invalid_argument", "value"),
        ({"user_id": ""}, "invalid_argument", "user_id"),
        ({"timestamp": "yesterday"}, "invalid_argument", "timestamp"),
        ({"collection": "none"}, "not_found", "collection"),
    ],
)
async def test_a_bad_interaction_names_field_and_value_and_changes_nothing(
    socket: JsonSocket, change: JsonMessage, code: str, field: str
) -> None:
    await add_items(socket)
    command = {
        "type": "user_interaction",
        "collection": "items",
        "user_id": "ann",
        "action": "click",
        "item_id": "g1-0",
    }
    error = await socket.reply(**(command | change))
    assert (error["type"], error["code"], error["field"]) == ("error", code, field)
    assert str(change.get(field, "")) in error["message"]
    assert await recommended(socket, "ann", k=100) == await recommended(socket, "nobody", k=100)


async def test_who_is_learned_while_the_collection_is_dropped_is_dropped_too(
    socket: JsonSocket, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_items(socket)
    assert (await did(socket, "ann", "like", "g1-0"))["type"] == "ack"
    begun, go_on, drop = threading.Event(), threading.Event(), DataDirectory.drop

    def dropped_slowly(self: DataDirectory, name: str, epoch: str) -> None:
        if name.startswith("items~"):
            begun.set()
            go_on.wait(10)
        drop(self, name, epoch)

    monkeypatch.setattr(DataDirectory, "drop", dropped_slowly)
    async with aiohttp.ClientSession(gateway.http) as http:
        dropping = asyncio.create_task(http.delete("/v1/collections/items"))
        await asyncio.to_thread(begun.wait, 10)
        learning = asyncio.create_task(did(socket, "ann", "like", "g1-1"))
        await asyncio.sleep(0.1)
        go_on.set()
        (await dropping).close()
        assert (await learning)["code"] == "not_found"
        (await http.put("/v1/collections/items", json={"dimension": DIMENSION + 1})).close()
        async with http.get("/v1/users/ann?collection=items") as reply:
            assert reply.status == 404, "users are dropped with their collection"


async def test_a_recommendation_waits_for_the_index_version_it_is_to_see(start_gateway: StartGateway) -> None:
    async with start_gateway(read_wait_s=0.2) as gateway, json_socket(gateway.ws) as socket:
        await add_items(socket)
        early = await socket.reply(action="search", collection="items", user_id="ann", min_index_version=25)
        assert (early["code"], early["field"]) == ("overloaded", "min_index_version")
        found = await socket.reply(action="search", collection="items", user_id="ann", min_index_version=24)
        assert found["index_version"] == 24


async def test_a_vector_from_elsewhere_makes_nothing_popular(socket: JsonSocket, gateway: Gateway) -> None:
    await add_items(socket)
    for number in range(2):
        await did(socket, f"u{number}", "view", "g3-5")
    await did(socket, "ann", "view", "g0-2")
    assert (await recommended(socket, "nobody", k=2, diversity=0)) == ["g3-5", "g0-2"]
    async with aiohttp.ClientSession(gateway.http) as http:
        for number in range(5):
            url = "/v1/users/ann/embedding?collection=items"
            async with http.post(url, json={"vector": axis(number)}) as reply:
                assert reply.status == 200
    assert (await recommended(socket, "nobody", k=2, diversity=0)) == ["g3-5", "g0-2"]


@pytest.mark.parametrize("timestamp", [1e12, 1e303, 1.7e308, "9999-12-31T23:59:59+00:00"])
async def test_an_interaction_from_the_future_is_one_of_now(
    socket: JsonSocket, gateway: Gateway, timestamp: str | float
) -> None:
    await add_items(socket)
    assert (await did(socket, "ann", "click", "g1-0", timestamp=timestamp))["type"] == "ack"
    assert (await did(socket, "ann", "click", "g1-1"))["type"] == "ack"
    async with aiohttp.ClientSession(gateway.http) as http, http.get("/v1/users/ann?collection=items") as reply:
        user = await reply.json()
    assert user["evidence"] == pytest.approx(0.6, abs=1e-4), "neither of the clicks has aged"


async def watch(socket: JsonSocket, user: str, **more: Any) -> JsonMessage:
    return await socket.reply(action="watch", collection="items", user_id=user, **more)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        ({"action": "search", "user_id": "ann", "diversity": 2}, "diversity"),
        ({"action": "search", "user_id": "ann", "exact": True}, "exact"),
        ({"action": "search", "id": "g1-0", "diversity": 0.5}, "diversity"),
        ({"action": "watch", "id": "g1-0", "diversity": 0.5}, "diversity"),
        ({"action": "watch", "user_id": "ann", "include": ["content"]}, "include"),
        ({"action": "watch", "user_id": "ann", "min_score": 0.5}, "min_score"),
    ],
)
async def test_what_does_not_go_together_is_refused(socket: JsonSocket, command: JsonMessage, field: str) -> None:
    await add_items(socket)
    error = await socket.reply(collection="items", **command)
    assert (error["code"], error["field"]) == ("invalid_argument", field)


async def test_users_may_have_slashes_in_their_ids(socket: JsonSocket, gateway: Gateway) -> None:
    await add_items(socket)
    async with aiohttp.ClientSession(gateway.http) as http:
        body = {"collection": "items", "vector": axis(2)}
        async with http.post("/v1/users/shop/eu/7/embedding", json=body) as reply:
            assert reply.status == 200
        async with http.get("/v1/users/shop/eu/7?collection=items") as reply:
            assert (await reply.json())["user_id"] == "shop/eu/7"
        async with http.delete("/v1/users/shop/eu/7?collection=items") as reply:
            assert reply.status == 200
        async with http.get("/v1/users/shop/eu/7?collection=items") as reply:
            assert (await reply.json())["message"] == "nothing is known of user 'shop/eu/7' in collection 'items'"


async def test_a_watch_of_a_user_follows_what_the_user_does(gateway: Gateway) -> None:
    async with json_socket(gateway.ws) as producer, json_socket(gateway.ws) as watcher:
        await add_items(producer)
        watching = await watch(watcher, "ann", k=3)
        assert watching["type"] == "watching", watching
        assert len(watching["results"]) == 3
        for item in ("g1-0", "g1-1"):
            await did(producer, "ann", "purchase", item)
            update = await watcher.receive()
            assert (update["type"], update["watch_id"]) == ("recommendation_update", watching["watch_id"])
            assert item not in update["recommendations"]
        assert update["recommendations"] == await recommended(producer, "ann", k=3)


async def test_a_watch_of_a_user_follows_the_items(gateway: Gateway) -> None:
    async with json_socket(gateway.ws) as producer, json_socket(gateway.ws) as watcher:
        await add_items(producer)
        for item in ("g1-0", "g1-1", "g1-2", "g1-3"):
            await did(producer, "ann", "purchase", item)
        watching = await watch(watcher, "ann", k=2, diversity=0)
        assert [item["id"] for item in watching["results"]] == ["g1-4", "g1-5"]
        await producer.reply(action="upsert", collection="items", id="g1-9", vector=axis(1, 0.02))
        update = await watcher.receive()
        assert "g1-9" in update["recommendations"], "what is near has changed"
        await producer.reply(action="delete", collection="items", id="g1-9")
        while "g1-9" in update["recommendations"]:
            update = await watcher.receive()
        assert update["recommendations"] == ["g1-4", "g1-5"], "what is gone isn't recommended"


async def test_a_watch_of_a_user_ends_with_the_collection(socket: JsonSocket, gateway: Gateway) -> None:
    await add_items(socket)
    await did(socket, "ann", "click", "g1-0")
    watching = await watch(socket, "ann")
    async with aiohttp.ClientSession(gateway.http) as http, http.delete("/v1/collections/items") as reply:
        assert reply.status == 200
    assert await socket.receive() == {
        "type": "unwatched",
        "watch_id": watching["watch_id"],
        "collection": "items",
    }
    await add_items(socket)
    async with aiohttp.ClientSession(gateway.http) as http, http.get("/v1/users/ann?collection=items") as reply:
        assert reply.status == 404, "users are dropped with their collection"


async def test_a_watch_of_a_user_ends_before_it_is_forgotten_what_the_user_did(
    socket: JsonSocket, gateway: Gateway
) -> None:
    """It was told once more what is recommended to nobody, where something came in between the two drops."""
    await add_items(socket)
    await did(socket, "ann", "click", "g1-0")
    watching = await watch(socket, "ann")
    hosting = gateway.node._hosting
    users = hosting.get("items~users")
    assert users is not None
    async with hosting.changing:
        await hosting.remove(users)
    written = [item["id"] for item in watching["results"][:2]]
    await socket.send({"action": "delete", "collection": "items", "ids": written})
    first, second = await socket.receive(), await socket.receive()
    assert (first["type"], first["watch_id"]) == ("unwatched", watching["watch_id"])
    assert second["type"] == "ack"


async def test_who_closes_a_full_connection_holds_up_nobody(gateway: Gateway, socket: JsonSocket) -> None:
    """A feed that was to be told then waited in a loop that nothing else ran beside, for good."""
    await add_items(socket)
    await did(socket, "ann", "like", "g1-0")
    async with json_socket(gateway.ws) as watcher:
        await watch(watcher, "ann", k=3)
        audience = gateway.node.hosted("items").audience
        assert audience is not None
        (feed,) = audience.feeds._all()
        feed.sink = sink = Closing()
        assert (await did(socket, "ann", "like", "g1-1"))["type"] == "ack"
        assert (await socket.reply(action="ping"))["type"] == "pong"
        while feed.queued:
            await asyncio.sleep(0)
        assert sink.asked == 1
    while len(audience.feeds):
        await asyncio.sleep(0.01)


async def test_a_vector_from_elsewhere_takes_a_profiles_place(socket: JsonSocket, gateway: Gateway) -> None:
    await add_items(socket)
    async with aiohttp.ClientSession(gateway.http) as http:
        async with http.post("/v1/users/ann/embedding?collection=items", json={"vector": axis(2)}) as reply:
            assert reply.status == 200, await reply.text()
        found = await recommended(socket, "ann", k=3, diversity=0)
        assert all(item.startswith("g2-") for item in found), found
        async with http.post("/v1/users/ann/embedding?collection=items", json={"vector": [1, 2]}) as reply:
            error = await reply.json()
            assert (reply.status, error["code"], error["field"]) == (400, "invalid_vector", "vector")
        async with http.delete("/v1/users/ann?collection=items") as reply:
            assert (await reply.json())["results"][0]["status"] == "deleted"
        async with http.get("/v1/users/ann?collection=items") as reply:
            assert reply.status == 404


async def test_the_collection_of_users_cant_be_named(socket: JsonSocket, gateway: Gateway) -> None:
    await add_items(socket)
    await did(socket, "ann", "click", "g1-0")
    error = await socket.reply(action="get", collection="items~users", id="ann")
    assert (error["code"], error["field"]) == ("invalid_argument", "collection")
    async with aiohttp.ClientSession(gateway.http) as http, http.get("/v1/collections") as reply:
        assert "users" not in await reply.text()


async def test_many_interactions_at_once_all_count(socket: JsonSocket, gateway: Gateway) -> None:
    await add_items(socket)
    await asyncio.gather(
        *(
            socket.send(
                {
                    "type": "user_interaction", "collection": "items", "user_id": f"u{n % 5}", "action": "purchase",
                    "item_id": f"g{n % 4}-{n % 6}", "timestamp": 1_700_000_000, "ref": n,
                }
            )
            for n in range(100)
        )
    )  # fmt: skip
    acks = [await socket.receive() for _ in range(100)]
    assert {ack["type"] for ack in acks} == {"ack"}
    versions = sorted((ack["results"][0]["id"], ack["results"][0]["version"]) for ack in acks)
    assert versions == [(f"u{user}", version) for user in range(5) for version in range(1, 21)]

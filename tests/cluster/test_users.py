"""Users of collections that several nodes share: what is learned at one is known at all, and counts once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.app import Gateway
from tests.cluster.nodes import Nodes, ask, edged, level
from tests.conftest import JsonMessage, json_socket
from tests.server.test_users import add_items, did, recommended


async def known(gateway: Gateway, user: str) -> JsonMessage:
    found: JsonMessage = await ask(gateway, f"/v1/users/{user}?collection=items")
    return found


async def both_host(*gateways: Gateway) -> None:
    while any({"items", "items~users"} - gateway.node.holdings().keys() for gateway in gateways):
        await asyncio.sleep(0.01)
    await level(*gateways, collection="items")


async def same(one: Gateway, other: Gateway, user: str, version: int) -> JsonMessage:
    """Return what is known of a user once both nodes know its version."""
    while True:
        try:
            found = [await known(gateway, user) for gateway in (one, other)]
        except OSError:  # 404 or 503: not there yet
            await asyncio.sleep(0.02)
            continue
        if [user["version"] for user in found] == [version, version]:
            assert found[0]["categories"] == found[1]["categories"]
            assert found[0]["recent"] == found[1]["recent"]
            return found[0]
        await asyncio.sleep(0.02)


async def test_what_a_user_does_at_one_node_is_known_at_another(nodes: Nodes) -> None:
    async with nodes.node("a") as (a, at_a), nodes.node("b") as (b, at_b):
        await add_items(at_a)
        assert (await did(at_a, "ann", "purchase", "g1-0"))["type"] == "ack"
        await both_host(a, b)
        await same(a, b, "ann", 1)
        acks = await asyncio.gather(
            *(did(socket, "ann", "purchase", f"g1-{n}") for socket, n in ((at_a, 1), (at_b, 2))),
        )
        assert sorted(ack["results"][0]["version"] for ack in acks) == [2, 3], "both count, one after the other"
        user = await same(a, b, "ann", 3)
        assert set(user["recent"]) == {"g1-0", "g1-1", "g1-2"}
        assert await recommended(at_a, "ann", k=3, diversity=0) == await recommended(at_b, "ann", k=3, diversity=0)


async def test_who_asks_before_users_are_copied_waits_for_them(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes.node("a") as (a, at_a), nodes.node("b") as (b, at_b):
        await add_items(at_a)
        await level(a, b, collection="items")
        joining, gate = b.node.join, asyncio.Event()

        async def late(*args: Any) -> None:
            await gate.wait()
            await joining(*args)

        monkeypatch.setattr(b.node, "join", late)
        assert (await did(at_a, "ann", "purchase", "g1-0"))["type"] == "ack"
        while "items~users" not in b.node.cluster.names():
            await asyncio.sleep(0.01)
        asking = asyncio.create_task(recommended(at_b, "ann", k=3, diversity=0))
        assert not (await asyncio.wait([asking], timeout=0.1))[0], "it waits"
        gate.set()
        assert len(await asking) == 3


async def test_what_is_popular_is_counted_at_every_node(nodes: Nodes) -> None:
    async with nodes.node("a") as (a, at_a), nodes.node("b") as (b, at_b):
        await add_items(at_a)
        for n in range(5):
            await did(at_a, f"u{n}", "purchase", "g3-5")
        await both_host(a, b)
        await same(a, b, "u4", 1)
        assert (await recommended(at_b, "nobody", k=1)) == ["g3-5"]
        for n in range(9):
            await did(at_a, f"v{n}", "purchase", "g0-0")
        await same(a, b, "v8", 1)
        assert (await recommended(at_b, "nobody", k=1)) == ["g0-0"]


async def test_a_watch_at_one_node_hears_of_what_the_user_does_at_another(nodes: Nodes) -> None:
    async with nodes.node("a") as (a, at_a), nodes.node("b") as (b, at_b):
        await add_items(at_a)
        await did(at_a, "ann", "click", "g1-0")
        await both_host(a, b)
        await same(a, b, "ann", 1)
        watching = await at_b.reply(action="watch", collection="items", user_id="ann", k=3)
        assert watching["type"] == "watching"
        await did(at_a, "ann", "purchase", "g2-0")
        update = await at_b.receive()
        assert (update["type"], update["user_id"]) == ("recommendation_update", "ann")
        assert "g2-0" not in update["recommendations"]


async def test_an_edge_learns_where_the_collection_is(nodes: Nodes) -> None:
    async with edged(nodes) as (hosts, edge, socket):
        await add_items(socket)
        await level(*hosts, collection="items")
        first = await did(socket, "ann", "purchase", "g1-0", event_id="e")
        again = await did(socket, "ann", "purchase", "g1-0", event_id="e")
        assert (first["results"][0]["status"], again["results"][0]["status"]) == ("inserted", "duplicate")
        await both_host(*hosts)
        await same(hosts[0], hosts[1], "ann", 1)
        await socket.send(
            {"type": "user_event", "collection": "items", "user_id": "ann", "event_type": "like", "item_id": "g1-1"}
        )
        result, update = await socket.receive(), await socket.receive()
        assert (result["type"], update["type"]) == ("sync_result", "recommendation_update")
        assert not {"g1-0", "g1-1"} & set(update["recommendations"])
        await ask(edge, "/v1/users/ann/embedding?collection=items", "POST", {"vector": [0, 0, 1, 0, 0, 0, 0, 0]})
        found = await recommended(socket, "ann", k=3, diversity=0)
        assert all(item.startswith("g2-") for item in found)
        assert not edge.node.holdings()


async def test_users_are_dropped_with_their_collection_everywhere(nodes: Nodes) -> None:
    async with nodes.node("a") as (a, at_a), nodes.node("b") as (b, _), json_socket(b.ws) as at_b:
        await add_items(at_a)
        await did(at_a, "ann", "click", "g1-0")
        await both_host(a, b)
        await same(a, b, "ann", 1)
        await ask(b, "/v1/collections/items", "DELETE")
        while a.node.holdings() or b.node.holdings():
            await asyncio.sleep(0.02)
        await add_items(at_b)
        assert (await did(at_b, "ann", "click", "g1-0"))["results"][0]["version"] == 1

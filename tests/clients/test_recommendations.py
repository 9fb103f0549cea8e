"""Users and what is recommended to them, with the client against real gateways that come and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import hotindex
import pytest
from hotindex import Client, Document, Recommendations

from gateway.app import Gateway
from tests.clients.scripted import item, scripted
from tests.clients.test_client import FAST
from tests.ports import HOST
from tests.proxy import Proxy
from tests.server.test_users import DIMENSION, axis
from tests.server.test_websocket import drop


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    async with Client(gateway.ws, backoff=FAST) as connected:
        yield connected


@asynccontextmanager
async def through_a_proxy(gateway: Gateway) -> AsyncIterator[tuple[Proxy, Client]]:
    async with (
        Proxy(int(gateway.ws.rpartition(":")[2])) as proxy,
        Client(f"ws://{HOST}:{proxy.port}", backoff=FAST) as client,
    ):
        yield proxy, client


async def add_items(client: Client, groups: int = 4, each: int = 6) -> None:
    """Add `each` items near each of some axes: g0-0, g0-1, ..., g1-0, ...

    And a user, for the first one has all lists made anew.
    """
    documents = [
        Document(f"g{g}-{i}", axis(g, 0.01 * i), metadata={"group": g}) for g in range(groups) for i in range(each)
    ]
    await client.upsert("items", documents)
    await client.interact("someone", "view", "g0-0", collection="items")


async def evidence(gateway: Gateway, user_id: str) -> float:
    """Return how much the gateway knows of a user."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{gateway.http}/v1/users/{user_id}?collection=items") as reply,
    ):
        return float((await reply.json())["evidence"]) if reply.status == 200 else 0.0


async def searched(client: Client, user_id: str, **how: Any) -> list[str]:
    return [hit.id for hit in (await client.search("items", user_id=user_id, **how)).hits]


def ids(items: tuple[hotindex.Recommendation, ...]) -> list[str]:
    return [one.id for one in items]


async def until_equal(watch: Recommendations, expected: list[str]) -> None:
    async with asyncio.timeout(5):
        while ids(watch.results) != expected:
            await asyncio.sleep(0.005)


async def until_watched_again(watch: Recommendations) -> None:
    """The connection was reset: wait until the client has noticed, and has watched again over the next."""
    async with asyncio.timeout(5):
        while watch.watch_id is not None:
            await asyncio.sleep(0)
        while watch.watch_id is None:
            await asyncio.sleep(0)


async def test_an_interaction_turns_what_is_searched_for_a_user(client: Client) -> None:
    await add_items(client)
    ack = await client.interact("ann", "purchase", "g1-0", collection="items")
    assert ([(one.id, one.status) for one in ack.results], ack.index_version) == ([("ann", "inserted")], 24)
    await client.interact("ann", "rate", "g1-1", value=9.5, timestamp=datetime.now(UTC), collection="items")
    await client.interact("ann", "like", "g1-2", timestamp=time.time() - 60, collection="items")
    assert set(await searched(client, "ann", k=3, diversity=0)) == {"g1-3", "g1-4", "g1-5"}
    assert set(await searched(client, "ann", k=3, filter={"group": 2})) <= {f"g2-{i}" for i in range(6)}
    spread = await searched(client, "ann", k=4, diversity=1)
    assert {one[:2] for one in spread} == {"g0", "g1", "g2", "g3"}, "those least alike"
    (hit,) = (await client.search("items", user_id="ann", k=1, include=["vector"])).hits
    assert (hit.metadata, hit.vector and len(hit.vector)) == ({"group": 1}, DIMENSION)


async def test_an_update_follows_an_interaction(client: Client, gateway: Gateway) -> None:
    await add_items(client)
    async with Client(gateway.ws) as producer, client.recommendations("ann", collection="items", k=3) as watch:
        first = await anext(watch)
        assert (first.user_id, len(first.added), first.removed) == ("ann", 3, ())
        assert first.results == first.added == watch.results
        assert all(one.metadata == {"group": int(one.id[1])} for one in first.results)
        for bought in ("g1-0", "g1-1"):
            await producer.interact("ann", "purchase", bought, collection="items")
            update = await anext(watch)
            assert bought not in ids(update.results)
            await until_equal(watch, await searched(client, "ann", k=3))


async def test_an_update_says_what_came_and_what_left(client: Client) -> None:
    await add_items(client)
    await client.interact("ann", "purchase", "g1-0", collection="items")
    async with client.recommendations("ann", collection="items", k=2, diversity=0) as watch:
        before = await anext(watch)
        gone = before.results[0].id
        await client.interact("ann", "purchase", gone, collection="items")
        update = await anext(watch)
        (new,) = update.added
        assert (update.removed, new.metadata) == ((gone,), None)
        (kept,) = (one for one in update.results if one.id != new.id)
        assert kept.metadata == {"group": 1}, "as it was told at the beginning"


async def test_what_is_near_an_item_is_told_of_however_much_of_it_was_seen(client: Client) -> None:
    """The ten nearest were followed as of when the item was liked. When all of them had been hidden, and the item was liked
    again and again meanwhile, nothing farther was told of.
    """
    hidden = [Document(f"h{i:02}", axis(1, 0.01 * i)) for i in range(1, 12)]
    await client.upsert("items", [Document("liked", axis(1)), *hidden, *(Document(f"f{i}", axis(3)) for i in range(3))])
    await client.interact("someone", "view", "f0", collection="items")
    async with client.recommendations("ann", collection="items", k=2, diversity=0) as watch:
        for document in hidden:
            await client.interact("ann", "purchase", "liked", collection="items")
            await client.interact("ann", "hide", document.id, collection="items")
        await until_equal(watch, await searched(client, "ann", k=2, diversity=0))
        assert {one[0] for one in ids(watch.results)} == {"f"}
        await client.upsert("items", id="new", vector=axis(1, 0.3))
        await until_equal(watch, await searched(client, "ann", k=2, diversity=0))
        assert ids(watch.results)[0] == "new"


async def test_a_filter_and_a_rate_are_kept_to(client: Client) -> None:
    await add_items(client)
    how: dict[str, Any] = {"k": 3, "filter": {"group": {"$in": [2, 3]}}, "max_rate": 4}
    async with client.recommendations("ann", collection="items", **how) as watch:
        await anext(watch)
        loop = asyncio.get_running_loop()
        began, updates = loop.time(), 0
        for i in range(6):
            await client.interact("ann", "click", f"g2-{i}", collection="items")
        while set(ids(watch.results)) & {f"g2-{i}" for i in range(6)}:
            update = await anext(watch)
            updates += 1
            assert {one.id[:2] for one in update.results} <= {"g2", "g3"}
        assert updates <= 1 + 4 * (loop.time() - began)
    with pytest.raises(TypeError, match="must be a mapping"):
        client.recommendations("ann", filter=["group"])  # type: ignore[arg-type]


async def test_a_lost_connection_with_the_same_list_after_it_is_not_noticed(client: Client, gateway: Gateway) -> None:
    await add_items(client)
    await client.interact("ann", "purchase", "g1-0", collection="items")
    async with (
        through_a_proxy(gateway) as (proxy, watcher),
        watcher.recommendations("ann", collection="items", k=3) as watch,
    ):
        first = await anext(watch)
        for _ in range(2):
            proxy.reset()
            await until_watched_again(watch)
        waiting = asyncio.create_task(anext(watch))
        await watcher.ping()
        assert not waiting.done()
        assert ids(watch.results) == ids(first.results)
        await client.interact("ann", "purchase", first.results[0].id, collection="items")
        assert (await waiting).removed == (first.results[0].id,)


async def test_what_was_done_while_the_connection_was_lost_is_one_update(client: Client, gateway: Gateway) -> None:
    await add_items(client)
    async with (
        through_a_proxy(gateway) as (proxy, watcher),
        watcher.recommendations("ann", collection="items", k=3, diversity=0) as watch,
    ):
        await anext(watch)
        proxy.cut()
        for i in range(3):
            await client.interact("ann", "purchase", f"g2-{i}", collection="items")
        await proxy.resume()
        update = await anext(watch)
        assert set(ids(update.results)) == {"g2-3", "g2-4", "g2-5"}
        assert all(one.metadata == {"group": 2} for one in update.results), "the gateway was asked again"
        waiting = asyncio.create_task(anext(watch))
        await watcher.ping()
        assert not waiting.done(), "one update, and no more"
        waiting.cancel()


async def test_an_interaction_that_is_sent_again_counts_once(client: Client, gateway: Gateway) -> None:
    await add_items(client)
    async with through_a_proxy(gateway) as (proxy, cut_off):
        proxy.silence()
        doing = asyncio.create_task(cut_off.interact("ann", "purchase", "g1-0", collection="items"))
        async with asyncio.timeout(5):
            while not await evidence(gateway, "ann"):
                await asyncio.sleep(0.005)
        assert not doing.done()
        await proxy.resume()
        proxy.reset()
        (result,) = (await doing).results
        assert (result.id, result.version, result.status) == ("ann", 1, "duplicate")
    assert await evidence(gateway, "ann") == pytest.approx(1, abs=1e-4), "of one purchase"


async def test_each_interaction_counts_unless_it_has_the_event_id_of_another(client: Client, gateway: Gateway) -> None:
    await add_items(client)
    for event_id, status in ((None, "inserted"), (None, "updated"), ("e", "updated"), ("e", "duplicate")):
        ack = await client.interact("ann", "click", "g1-0", event_id=event_id, collection="items")
        assert ack.results[0].status == status
    assert await evidence(gateway, "ann") == pytest.approx(0.9, abs=1e-4), "of three clicks"


async def test_a_command_that_names_no_collection_is_for_the_default_one(client: Client) -> None:
    await client.upsert("default", id="a", vector=[1, 0])
    await client.upsert("default", id="b", vector=[1, 0.1])
    async with client.recommendations("ann") as watch:
        assert len((await anext(watch)).results) == 2
        assert (await client.interact("ann", "view", "a")).collection == "default"
        await until_equal(watch, ["b"])


@pytest.mark.parametrize(
    ("change", "kind", "field"),
    [
        ({"item_id": "nothing"}, hotindex.NotFound, "item_id"),
        ({"collection": "nowhere"}, hotindex.NotFound, "collection"),
        ({"action": "buy"}, hotindex.InvalidRequest, "action"),
        ({"action": "rate", "value": 11.0}, hotindex.InvalidRequest, "value"),
        ({"timestamp": -1.0}, hotindex.InvalidRequest, "timestamp"),
    ],
)
async def test_what_is_wrong_with_an_interaction_is_raised(
    client: Client, change: dict[str, Any], kind: type[hotindex.ServerError], field: str
) -> None:
    await add_items(client)
    interaction = {"user_id": "ann", "action": "click", "item_id": "g1-0", "collection": "items", **change}
    with pytest.raises(kind) as refused:
        await client.interact(**interaction)
    assert refused.value.field == field


async def test_what_is_wrong_with_a_watch_or_a_search_is_raised(client: Client) -> None:
    await add_items(client)
    with pytest.raises(hotindex.NotFound):
        await client.recommendations("ann", collection="nowhere").__aenter__()
    for how, field in (({"k": 101}, "k"), ({"diversity": 2}, "diversity"), ({"max_rate": 0}, "max_rate")):
        with pytest.raises(hotindex.InvalidRequest) as refused:
            async for _ in client.recommendations("ann", collection="items", **how):  # type: ignore[arg-type]
                pass
        assert refused.value.field == field
    with pytest.raises(hotindex.InvalidRequest) as refused:
        await client.search("items", user_id="ann", text="the sea")
    assert refused.value.field == "text"


async def test_a_dropped_collection_ends_it(client: Client, gateway: Gateway) -> None:
    await add_items(client)
    async with client.recommendations("ann", collection="items") as watch:
        await anext(watch)
        await drop(gateway, "items")
        with pytest.raises(hotindex.NotFound):
            await anext(watch)


async def test_a_collection_made_again_is_gone_on_with() -> None:
    async with scripted() as server, Client(server.url, backoff=FAST) as client:
        watch = client.recommendations("ann", collection="m")
        assert ids((await anext(watch)).results) == ["b", "a"], "the gateway's order, whatever the scores are"
        server.answer = [item("new", 0.3)]
        await server.send(type="unwatched", watch_id="w1", collection="m")
        update = await anext(watch)
        assert (ids(update.added), update.removed) == (["new"], ("b", "a"))
        await watch.close()
    (asked, again) = ({**command, "ref": 0} for command in server.watched)
    assert asked == again == {"action": "watch", "collection": "m", "user_id": "ann", "k": 10, "ref": 0}


async def test_a_list_that_is_sent_again_as_it_was_yields_nothing() -> None:
    async with (
        scripted() as server,
        Client(server.url, backoff=FAST) as client,
        client.recommendations("ann", collection="m") as watch,
    ):
        await anext(watch)
        waiting = asyncio.create_task(anext(watch))
        await server.recommend("ann", {"b": 0.8, "a": 0.9})
        await client.ping()
        assert not waiting.done()
        await server.recommend("ann", {"b": 0.8, "a": 0.7})
        assert [one.score for one in (await waiting).results] == [0.8, 0.7]


async def test_a_busy_consumer_gets_the_latest_list_alone() -> None:
    async with scripted() as server, Client(server.url, backoff=FAST) as client:
        async with client.recommendations("ann", collection="m") as watch:
            await anext(watch)
            for i in range(100):
                about = {"type": "recommendation_update", "watch_id": "w1", "collection": "m", "user_id": "ann"}
                await server.send(**about, recommendations=["a", f"n{i}"], scores=[0.5, 0.4], timestamp="")
            await client.ping()
            update = await anext(watch)
            assert (ids(update.results), ids(update.added), update.removed) == (["a", "n99"], ["n99"], ("b",))
            # Of another watch, that was left, or of a user whose event was told of: not for this one.
            await server.send(**about | {"watch_id": "w7"}, recommendations=[], scores=[], timestamp="")
            del about["watch_id"]
            await server.send(**about, recommendations=[], scores=[], timestamp="")
            await client.ping()
            assert ids(watch.results) == ["a", "n99"]
        assert server.unwatched == ["w1"]


async def test_the_synchronous_client(gateway: Gateway) -> None:
    def use() -> None:
        with hotindex.sync.Client(gateway.ws) as client:
            client.upsert("items", [Document(f"g0-{i}", axis(0, 0.01 * i)) for i in range(4)])
            with client.recommendations("ann", collection="items", k=3) as watch:
                assert (len(watch.results), watch.user_id, watch.ended) == (3, "ann", False)
                updates = iter(watch)
                first = next(updates).results[0].id
                assert client.interact("ann", "purchase", first, collection="items").results[0].status == "inserted"
                update = next(updates)
                assert update.removed == (first,)
                found = client.search("items", user_id="ann", k=3)
                assert sorted(hit.id for hit in found.hits) == sorted(ids(update.results))
            for update in client.recommendations("ann", collection="items"):
                assert update.removed == ()
                break
            with pytest.raises(hotindex.NotFound):
                next(iter(client.recommendations("ann", collection="nowhere")))

    await asyncio.to_thread(use)


async def test_the_synchronous_client_takes_and_raises_the_same(gateway: Gateway) -> None:
    def use() -> None:
        with hotindex.sync.Client(gateway.ws) as client:
            documents = [
                Document(f"g{g}-{i}", axis(g, 0.01 * i), metadata={"group": g}) for g in range(3) for i in range(4)
            ]
            client.upsert("items", documents)
            about: dict[str, Any] = {"value": 9, "timestamp": datetime.now(UTC), "event_id": "e", "collection": "items"}
            acks = [client.interact("ann", "rate", "g1-0", **about) for _ in range(2)]
            assert [ack.results[0].status for ack in acks] == ["inserted", "duplicate"]
            how: dict[str, Any] = {"k": 2, "filter": {"group": {"$gte": 1}}, "diversity": 0}
            found = [hit.id for hit in client.search("items", user_id="ann", **how).hits]
            assert {one[:2] for one in found} == {"g1"}
            with client.recommendations("ann", collection="items", max_rate=100, **how) as watch:
                assert ids(next(iter(watch)).results) == found
            with pytest.raises(hotindex.NotFound):
                client.interact("ann", "click", "nothing", collection="items")
            with pytest.raises(hotindex.InvalidRequest):
                client.search("items", user_id="ann", diversity=2)
            with pytest.raises(TypeError, match="must be a mapping"):
                client.recommendations("ann", filter=["group"])  # type: ignore[arg-type]

    await asyncio.to_thread(use)

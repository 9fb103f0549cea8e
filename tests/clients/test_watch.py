"""The client's watches, against a server that answers and pushes what a test says."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import hotindex
import pytest
from hotindex import Change, Client, Match
from hotindex.watch import applied, difference
from hypothesis import given
from hypothesis import strategies as st

from tests.clients.scripted import Scripted, item, scripted
from tests.clients.test_client import FAST


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted() as running:
        yield running


@pytest.fixture
async def client(server: Scripted) -> AsyncIterator[Client]:
    async with Client(server.url, backoff=FAST) as connected:
        yield connected


def ids(matches: tuple[Match, ...]) -> list[str]:
    return [match.id for match in matches]


async def test_the_first_change_is_the_first_answer_best_first_and_ties_by_id(server: Scripted, client: Client) -> None:
    server.answer = [item("c", 0.5), item("b", 0.5), item("z", 0.9, year=1990), item("a", 0.1)]
    async with client.watch("m", text="the sea", k=4) as watch:
        assert ids(watch.results) == ["z", "b", "c", "a"], "before anything is iterated too"
        change = await anext(watch)
    assert change == Change(1, watch.results, (), (), watch.results)
    assert change.results[0] == Match("z", 0.9, {"year": 1990})
    assert (watch.index_version, watch.exact, watch.collection) == (1, True, "m")


async def test_an_empty_answer_is_handed_out_too(server: Scripted, client: Client) -> None:
    server.answer = []
    async with client.watch("m", text="the sea") as watch:
        assert await anext(watch) == Change(1, (), (), (), ())
        await server.push(added=[item("a", 0.1)])
        assert ids((await anext(watch)).added) == ["a"]


async def test_the_command_has_what_was_asked_for_and_nothing_else(server: Scripted, client: Client) -> None:
    options: dict[str, Any] = {
        "filter": {"y": 1},
        "include": ["vector"],
        "min_score": 0.0,
        "exact": True,
        "max_rate": 2.5,
    }
    async with client.watch("m", text="the sea"), client.watch("m", vector=[1, 0], k=3, **options):
        pass
    async with client.watch("m", id="a"):
        pass
    asked = [
        {key: value for key, value in command.items() if key not in ("ref", "action")} for command in server.watched
    ]
    assert asked == [
        {"collection": "m", "text": "the sea", "k": 10},
        {"collection": "m", "vector": b"\0\0\x80\x3f\0\0\0\0", "k": 3, **options},
        {"collection": "m", "id": "a", "k": 10},
    ]
    with pytest.raises(TypeError, match="must be a mapping"):
        client.watch("m", id="a", filter=["y"])  # type: ignore[arg-type]


async def test_differences_are_applied_and_sorted(server: Scripted, client: Client) -> None:
    async with client.watch("m", text="the sea") as watch:
        await anext(watch)
        await server.push(added=[item("c", 0.85)], removed=["b"])
        change = await anext(watch)
        assert (change.index_version, ids(change.added), change.removed) == (2, ["c"], ("b",))
        assert ids(change.results) == ids(watch.results) == ["a", "c"]
        await server.push(changed=[item("c", 0.95), item("a", 0.9, sold=True)])
        change = await anext(watch)
        assert (change.added, change.removed) == ((), ())
        assert change.changed == change.results == (Match("c", 0.95, {}), Match("a", 0.9, {"sold": True}))


async def test_a_busy_consumer_gets_one_difference(server: Scripted, client: Client) -> None:
    async with client.watch("m", text="the sea") as watch:
        await anext(watch)
        for i in range(200):
            await server.push(added=[item(f"n{i}", 0.5)], removed=[f"n{i - 1}"] if i else ["b"])
        await server.push(changed=[item("a", 0.7)])
        await client.ping()
        assert ids(watch.results) == ["a", "n199"], "the present list, whatever was handed out"
        change = await anext(watch)
        assert (ids(change.added), ids(change.changed), change.removed) == (["n199"], ["a"], ("b",))
        assert (change.index_version, change.results) == (202, watch.results)


async def test_what_came_and_went_meanwhile_is_no_change(server: Scripted, client: Client) -> None:
    async with client.watch("m", text="the sea") as watch:
        await anext(watch)
        await server.push(added=[item("c", 0.7)])
        await server.push(removed=["c"])
        await client.ping()
        waiting = asyncio.create_task(anext(watch))
        await server.push(added=[item("d", 0.7)])
        change = await waiting
        assert (ids(change.added), change.changed, change.removed) == (["d"], (), ())


async def test_a_reconnect_gives_one_difference(server: Scripted, client: Client) -> None:
    async with client.watch("m", text="the sea") as watch:
        await anext(watch)
        server.answer, server.index_version = [item("a", 0.95), item("c", 0.8)], 40
        await server.connection.close(1012)
        change = await anext(watch)
        assert (change.index_version, ids(change.added), ids(change.changed), change.removed) == (
            40,
            ["c"],
            ["a"],
            ("b",),
        )
        await server.push(removed=["a"])
        assert (await anext(watch)).removed == ("a",)
    assert server.unwatched == ["w2"]
    first, second = ({**command, "ref": 0} for command in server.watched)
    assert first == second


async def test_a_reconnect_to_the_same_answer_gives_none(server: Scripted, client: Client) -> None:
    async with client.watch("m", text="the sea") as watch:
        await anext(watch)
        for times in (2, 3):
            await server.connection.close(1012)
            await server.until_watched(times)
        await client.ping()
        await server.push(added=[item("c", 0.1)])
        change = await anext(watch)
        assert (ids(change.added), change.changed, change.removed) == (["c"], (), ())


async def test_a_reconnect_while_the_consumer_is_busy_is_one_difference_with_what_came_before(
    server: Scripted, client: Client
) -> None:
    async with client.watch("m", text="the sea") as watch:
        await anext(watch)
        await server.push(added=[item("gone again", 0.7)])
        await client.ping()
        server.answer = [item("a", 0.9)]
        await server.connection.close(1012)
        await server.until_watched(2)
        await client.ping()
        change = await anext(watch)
        assert (change.added, change.changed, change.removed) == ((), (), ("b",))


async def test_watching_again_is_repeated_while_the_gateway_is_overloaded(server: Scripted, client: Client) -> None:
    async with client.watch("m", text="the sea") as watch:
        await anext(watch)
        server.answer = "overloaded"
        await server.connection.close(1012)
        await server.until_watched(3)
        server.answer = [item("c", 1)]
        assert ids((await anext(watch)).added) == ["c"]


async def test_leaving_unwatches(server: Scripted, client: Client) -> None:
    async with client.watch("m", text="the sea") as one, client.watch("m", text="the sea") as other:
        await server.push(watch_id="w1", removed=["a"])
        await client.ping()
        assert (ids(one.results), ids(other.results)) == (["b"], ["a", "b"]), "each has its own list"
    assert server.unwatched == ["w2", "w1"]
    await server.push(watch_id="w1", removed=["b"])  # it was on its way
    await client.ping()
    assert ids(one.results) == ["b"]
    assert ids((await anext(one)).added) == ["b"], "what had come is still handed out"
    with pytest.raises(hotindex.HotindexError, match="the watch is closed"):
        await anext(one)


async def test_a_loop_without_a_block_begins_it_and_its_end_unwatches(server: Scripted, client: Client) -> None:
    async for change in client.watch("m", text="the sea", k=10):
        assert ids(change.results) == ["a", "b"]
        break
    gc.collect()
    await server.until_unwatched(1)
    watch = client.watch("m", text="the sea")

    async def fail() -> None:
        async for change in watch:
            change.index_version // 0

    with pytest.raises(ZeroDivisionError):
        await fail()
    gc.collect()
    await server.until_unwatched(2)
    assert watch.ended


async def test_a_loop_inside_a_block_may_be_left_and_gone_on_with(server: Scripted, client: Client) -> None:
    async with client.watch("m", text="the sea") as watch:
        async for _ in watch:
            break
        gc.collect()
        await client.ping()
        await server.push(removed=["a"])
        async for change in watch:
            assert change.removed == ("a",)
            break
        assert not server.unwatched


async def test_a_dropped_collection_ends_the_iteration_after_what_had_come(server: Scripted, client: Client) -> None:
    watch = client.watch("m", text="the sea")
    await anext(watch)
    await server.push(removed=["a"])
    server.answer = "not_found"
    await server.send(type="unwatched", watch_id="w1", collection="m")
    await server.until_watched(2)
    await client.ping()
    assert (await anext(watch)).removed == ("a",)
    for _ in range(2):
        with pytest.raises(hotindex.NotFound):
            await anext(watch)
    await watch.close()
    assert not server.unwatched, "the gateway has it no more"


async def test_a_collection_made_again_is_gone_on_with(server: Scripted, client: Client) -> None:
    async with client.watch("m", text="the sea") as watch:
        await anext(watch)
        server.answer = [item("new", 0.3)]
        await server.send(type="unwatched", watch_id="w1", collection="m")
        change = await anext(watch)
        assert (ids(change.added), change.removed) == (["new"], ("a", "b"))
    assert server.unwatched == ["w2"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("not_found", hotindex.NotFound),
        ("invalid_argument", hotindex.InvalidRequest),
        ("invalid_vector", hotindex.InvalidRequest),
        ("overloaded", hotindex.Unavailable),
    ],
)
async def test_what_the_gateway_refuses_is_raised(
    server: Scripted, client: Client, code: str, kind: type[Exception]
) -> None:
    server.answer = code
    with pytest.raises(kind):
        await client.watch("m", text="the sea").__aenter__()
    with pytest.raises(kind):
        async for _ in client.watch("m", text="the sea"):
            pass
    watch = client.watch("m", text="the sea")
    for _ in range(2):
        with pytest.raises(kind):
            await anext(watch)


async def test_a_watch_given_up_before_its_answer_is_given_back(server: Scripted, client: Client) -> None:
    server.held.clear()
    begun = asyncio.create_task(client.watch("m", text="the sea").__aenter__())
    await server.until_watched(1)
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    server.held.set()
    await server.until_unwatched(1)
    assert server.unwatched == ["w1"]


async def test_a_watch_left_while_it_is_watched_again_is_given_back(server: Scripted, client: Client) -> None:
    watch = client.watch("m", text="the sea")
    await anext(watch)
    server.held.clear()
    await server.connection.close(1012)
    await server.until_watched(2)
    await watch.close()
    server.held.set()
    await server.until_unwatched(1)
    assert server.unwatched == ["w2"]


async def test_closing_the_client_ends_what_waits(server: Scripted) -> None:
    client = Client(server.url)
    await client.connect()
    watch = client.watch("m", text="the sea")
    await anext(watch)
    waiting = asyncio.create_task(anext(watch))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(hotindex.HotindexError, match="the client is closed"):
        await waiting
    await watch.close()


async def test_the_synchronous_client(server: Scripted) -> None:
    loop = asyncio.get_running_loop()

    def push(**what: Any) -> None:
        asyncio.run_coroutine_threadsafe(server.push(**what), loop).result(5)

    def use() -> None:
        with hotindex.sync.Client(server.url, backoff=FAST) as client:
            for change in client.watch("m", text="the sea", k=10):
                if change.index_version == 1:
                    assert ids(change.results) == ["a", "b"]
                    push(removed=["a"])
                else:
                    assert change.removed == ("a",)
                    break
            assert server.unwatched == ["w1"]
            with client.watch("m", text="the sea") as watch:
                assert ids(watch.results) == ["a", "b"]
                for _ in watch:
                    break
                push(removed=["b"])
                assert next(iter(watch)).removed == ("b",)
                assert server.unwatched == ["w1"]
            assert server.unwatched == ["w1", "w2"]
            server.answer = "not_found"
            with pytest.raises(hotindex.NotFound):
                next(iter(client.watch("nowhere", text="the sea")))

    await asyncio.to_thread(use)


LISTS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([0.1, 0.2, 0.3])).map(
    lambda scores: applied((), (Match(key, score, {}) for key, score in scores.items()), (), ())
)


@given(LISTS, LISTS)
def test_a_difference_applied_gives_the_list_it_leads_to(before: tuple[Match, ...], after: tuple[Match, ...]) -> None:
    change = difference(before, after, 7)
    assert applied(before, change.added, change.changed, change.removed) == after == change.results
    assert [(-match.score, match.id) for match in after] == sorted((-match.score, match.id) for match in after)
    assert all(match not in before for match in (*change.added, *change.changed))

"""What a subscription does with a busy consumer, a lost connection, a callback; against real gateways."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hotindex import BufferFull, CaughtUp, Client, Event, HotindexError, Reconnected, Reset, Update

from gateway.app import Gateway
from tests.clients.test_client import FAST
from tests.conftest import StartGateway
from tests.ports import free_port


async def filled(client: Client, count: int, documents: int) -> None:
    """Write so many different vectors."""
    for i in range(count):
        await client.upsert("m", id=f"d{i % documents}", vector=[1, count, i])


async def test_to_conflate_keeps_the_latest_of_each_document(gateway: Gateway) -> None:
    async with Client(gateway.ws) as client:
        await filled(client, 1, 1)
        async with client.subscribe("m", buffer=10, on_full="conflate") as updates:
            await filled(client, 50, 4)
            seen = [await anext(updates) for _ in range(4)]
            assert [event.index_version for event in seen if isinstance(event, Update)] == [48, 49, 50, 51]
            await client.delete("m", "d0")
            last = await anext(updates)
            assert isinstance(last, Update)
            assert (last.document_id, last.event_type) == ("d0", "delete")


async def test_to_conflate_is_bounded_too(gateway: Gateway) -> None:
    async with Client(gateway.ws) as client:
        await filled(client, 1, 1)
        async with client.subscribe("m", buffer=10, on_full="conflate") as updates:
            await filled(client, 100, 30)
            expected = {f"d{i}": (await client.get("m", f"d{i}")).version for i in range(30)}
            state: dict[str | None, int | None] = {}
            while state != expected:
                assert len(updates._held) <= 10
                event = await anext(updates)
                assert isinstance(event, Update)
                state[event.document_id] = event.version


async def test_to_fail_raises_after_what_was_held(gateway: Gateway) -> None:
    async with Client(gateway.ws) as client:
        await filled(client, 1, 1)
        updates = client.subscribe("m", buffer=10, on_full="fail")
        await updates.__aenter__()
        await filled(client, 20, 20)
        seen = [await anext(updates) for _ in range(10)]
        with pytest.raises(BufferFull) as full:
            await anext(updates)
        assert [event.index_version for event in seen if isinstance(event, Update)] == list(range(2, 12))
        assert full.value.retryable
        await updates.close()
        async with client.subscribe("m", since=11) as again:
            assert (await anext(again)).index_version == 12  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("wrong", "named"), [({"buffer": 0}, "buffer is 0"), ({"on_full": "drop"}, "on_full is 'drop'")]
)
async def test_wrong_options_are_named(gateway: Gateway, wrong: dict[str, object], named: str) -> None:
    async with Client(gateway.ws) as client:
        with pytest.raises(ValueError, match=named):
            client.subscribe("m", **wrong)  # type: ignore[arg-type]


async def test_caught_up_comes_after_what_was_missed(gateway: Gateway) -> None:
    async with Client(gateway.ws) as client:
        await filled(client, 20, 20)
        async with client.subscribe("m", since=0, caught_up=True, filter={"none": 1}) as updates:
            assert isinstance(await anext(updates), Reset)
            assert not updates.in_sync
            assert await anext(updates) == CaughtUp("m", 20, "cosine"), "also where the filter hides everything"
            assert updates.in_sync
            assert updates.index_version == 20


async def test_a_lost_connection_is_told_before_what_was_missed(tmp_path: Path, start_gateway: StartGateway) -> None:
    port = free_port()
    async with start_gateway(data_dir=tmp_path, ws_port=port) as gateway:
        client = Client(gateway.ws, backoff=FAST)
        await client.connect()
        await filled(client, 1, 1)
        updates = client.subscribe("m", caught_up=True)
        assert await anext(updates) == CaughtUp("m", 1, "cosine")
        assert updates.in_sync
    async with asyncio.timeout(10):
        while updates.in_sync:
            await asyncio.sleep(0.01)
    async with start_gateway(data_dir=tmp_path, ws_port=port) as gateway, Client(gateway.ws) as other:
        await other.upsert("m", id="b", vector=[1, 2, 3])
        assert await anext(updates) == Reconnected("m", 1)
        event = await anext(updates)
        if isinstance(event, CaughtUp):  # it was back before the write
            event = await anext(updates)
        assert isinstance(event, Update)
        assert event.document_id == "b"
        await client.close()


async def test_a_listener_calls_back_in_order_and_may_use_the_client(gateway: Gateway) -> None:
    async with Client(gateway.ws) as client:
        await filled(client, 1, 1)
        versions: list[int] = []
        done = asyncio.Event()

        async def looked_up(event: Event) -> None:
            assert isinstance(event, Update)
            assert event.document_id is not None
            found = await client.get("m", event.document_id)
            versions.append(found.version)
            if event.index_version == 6:
                done.set()

        async with client.listen("m", looked_up):
            await filled(client, 5, 5)
            await done.wait()
        assert versions == [2, 1, 1, 1, 1]
        assert not [task for task in asyncio.all_tasks() if "listener" in task.get_name()]


async def test_what_a_callback_raises_is_raised(gateway: Gateway) -> None:
    async with Client(gateway.ws) as client:
        await filled(client, 1, 1)

        def broken(_: Event) -> None:
            raise LookupError("the consumer's own fault")

        listener = await client.listen("m", broken).__aenter__()
        await filled(client, 2, 1)
        with pytest.raises(LookupError, match="own fault"):
            await listener.ended()
        with pytest.raises(LookupError, match="own fault"):
            await listener.__aexit__(None, None, None)
        with pytest.raises(HotindexError):
            await client.listen("nowhere", broken).__aenter__()
        async with client.subscribe("m"):
            pass


async def test_a_subscription_that_ended_is_not_begun_again(gateway: Gateway) -> None:
    """One that was about to go on, after its buffer had been full, once went on at the gateway after it was left."""
    async with Client(gateway.ws) as client:
        await filled(client, 5, 5)
        for _ in range(5):
            async with client.subscribe("m", since=0, buffer=1) as updates:
                await anext(updates)
            assert (await client.get("m", "d0")).id == "d0"
            async with asyncio.timeout(5):
                while len(gateway.node.hosted("m").room):
                    await asyncio.sleep(0.005)
        async with client.subscribe("m", filter={"k": 1}) as updates:
            await client.upsert("m", id="a", vector=[1, 1, 1], metadata={"k": 2})
            await client.upsert("m", id="b", vector=[1, 1, 1], metadata={"k": 1})
            event = await anext(updates)
            assert isinstance(event, Update)
            assert event.document_id == "b"


async def test_a_busy_consumer_through_many_reconnects_sees_nothing_twice(
    tmp_path: Path, start_gateway: StartGateway
) -> None:
    port = free_port()
    async with start_gateway(data_dir=tmp_path, ws_port=port) as gateway, Client(gateway.ws) as first:
        await filled(first, 20, 10)
    client = Client(f"ws://127.0.0.1:{port}", backoff=FAST)
    updates = client.subscribe("m", since=0, buffer=4, on_full="conflate")
    position = 0
    for turn in range(4):
        async with start_gateway(data_dir=tmp_path, ws_port=port):
            if not turn:
                await client.connect()
            await client.patch("m", "d0", {"turn": turn})
            for _ in range(6 if turn < 3 else 20):
                try:
                    async with asyncio.timeout(1.0):
                        event = await anext(updates)
                except TimeoutError:
                    break
                if isinstance(event, Update):
                    assert event.index_version > position
                    position = event.index_version
    assert position == 24
    await client.close()

"""The client's watches against real gateways that come and go."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import hotindex
import pytest
from hotindex import Client, Document, Watch

from gateway.app import Gateway
from tests.clients.test_client import FAST
from tests.conftest import StartGateway
from tests.ports import free_port
from tests.server.test_websocket import drop

QUERY = [1.0, 0.5, 0.2]


async def searched(client: Client) -> list[tuple[str, float]]:
    hits = (await client.search("m", vector=QUERY, k=5, exact=True)).hits
    return [(hit.id, pytest.approx(hit.score, abs=1e-6)) for hit in hits]  # type: ignore[misc]


async def until_equal(watch: Watch, client: Client) -> None:
    expected = await searched(client)
    async with asyncio.timeout(5):
        while [(match.id, match.score) for match in watch.results] != expected:
            await asyncio.sleep(0.005)


async def test_the_list_is_what_a_search_finds(gateway: Gateway) -> None:
    source = random.Random(7)
    async with Client(gateway.ws) as client, Client(gateway.ws) as writer:
        await writer.upsert("m", [Document(f"d{i}", [source.gauss(0, 1) for _ in QUERY]) for i in range(30)])
        async with client.watch("m", vector=QUERY, k=5) as watch:
            for _ in range(60):
                document_id = f"d{source.randrange(30)}"
                if source.random() < 0.3:
                    await writer.delete("m", document_id)
                else:
                    await writer.upsert("m", id=document_id, vector=[source.gauss(0, 1) for _ in QUERY])
                await until_equal(watch, writer)


async def test_content_and_vectors_come_along(gateway: Gateway) -> None:
    async with Client(gateway.ws) as client:
        await client.upsert("m", id="a", vector=QUERY, content="first")
        async with client.watch("m", vector=QUERY, include=["content", "vector"]) as watch:
            await anext(watch)
            await client.upsert("m", id="a", vector=[1.0, 0.0, 0.0], content="second")
            (match,) = (await anext(watch)).changed
            assert (match.content, match.vector and match.vector.tolist()) == ("second", [1.0, 0.0, 0.0])


async def test_a_watch_is_of_a_vector_that_was_asked_for_with_its_document(gateway: Gateway) -> None:
    async with Client(gateway.ws) as client:
        await client.upsert("m", id="a", vector=QUERY)
        film = await client.get("m", "a")
        with pytest.raises(TypeError, match=r"a vector, a text or an id, and all are None; .* recommendations$"):
            client.watch("m", vector=film.vector, k=5)
        film = await client.get("m", "a", include=["vector"])
        async with client.watch("m", vector=film.vector, k=5) as watch:
            assert [match.id for match in watch.results] == ["a"]


async def test_a_restart_is_one_difference_or_none(tmp_path: Path, start_gateway: StartGateway) -> None:
    port = free_port()
    async with start_gateway(data_dir=tmp_path, ws_port=port) as gateway:
        client = Client(gateway.ws, backoff=FAST)
        await client.connect()
        await client.upsert("m", [Document(f"d{i}", [1.0, i, 0.0]) for i in range(5)])
        watch = await client.watch("m", vector=QUERY, k=5).__aenter__()
        assert len((await anext(watch)).added) == 5
    async with start_gateway(data_dir=tmp_path, ws_port=port):
        await client.upsert("m", id="new", vector=QUERY)
        change = await anext(watch)
        assert ([match.id for match in change.added], change.changed, len(change.removed)) == (["new"], (), 1)
        await until_equal(watch, client)
        await client.close()


async def test_a_dropped_collection_ends_it(gateway: Gateway) -> None:
    async with Client(gateway.ws, backoff=FAST) as client:
        await client.upsert("m", id="a", vector=QUERY)
        async with client.watch("m", vector=QUERY) as watch:
            await anext(watch)
            await drop(gateway, "m")
            with pytest.raises(hotindex.NotFound):
                await anext(watch)


async def test_the_synchronous_client_shows_of_a_watch_what_the_other_does(gateway: Gateway) -> None:
    def use() -> None:
        with hotindex.sync.Client(gateway.ws) as client:
            client.upsert("m", id="a", vector=QUERY)
            watch = client.watch("m", vector=QUERY, exact=True)
            assert (watch.collection, watch.index_version, watch.exact, watch.watch_id) == ("m", None, None, None)
            with watch:
                assert (watch.index_version, watch.exact, watch.ended) == (1, True, False)
                assert watch.watch_id is not None
                changes = iter(watch)
                next(changes)
                client.upsert("m", id="b", vector=QUERY)
                assert next(changes).index_version == watch.index_version == 2
            assert watch.ended

    await asyncio.to_thread(use)

"""A gateway whose model is behind a service that fails: what is applied is right, what isn't is told, nothing is half."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from hotindex import Client, Conflict, ConnectionLost, Document, InvalidRequest, NotFound, Unavailable

from bench.provider import Asked, Provider, faults, ok, running, vector_of
from gateway.app import Gateway
from gateway.commands.process import GatewayProcess
from gateway.engine.store import STORE_FILE
from tests.conftest import StartGateway, json_socket

DIMENSION = 8
QUICK = {"timeout_s": 1.0, "give_up_s": 5.0, "circuit_reset_s": 0.2}


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with running(dimension=DIMENSION) as provider:
        yield provider


def models(provider: Provider, **given: Any) -> dict[str, Any]:
    return {"m": {"url": provider.url, "model": "small", "dimension": DIMENSION, **QUICK, **given}}


async def make(http: str, name: str = "c") -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.put(f"{http}/v1/collections/{name}", json={"model": "m"}) as made,
    ):
        assert made.status == 201, await made.text()


@asynccontextmanager
async def client_of(gateway: Gateway | GatewayProcess) -> AsyncIterator[Client]:
    await make(gateway.http)
    async with Client(gateway.ws) as client:
        yield client


async def insist(client: Client, document_id: str, content: str, event_id: str) -> int:
    """Send an event until it is applied; return how often it was refused."""
    for refused in itertools.count():
        try:
            await client.upsert("c", id=document_id, content=content, event_id=event_id)
        except Unavailable as error:
            await asyncio.sleep(min(0.05, error.retry_after_s or 0.05))
        else:
            return refused
    raise AssertionError("the count never ends")


async def assert_embeds(client: Client, document_id: str, text: str, version: int = 1) -> None:
    stored = await client.get("c", document_id, include=["vector", "content"])
    assert (stored.content, stored.version) == (text, version)
    np.testing.assert_allclose(np.asarray(stored.vector), vector_of(text, DIMENSION), atol=1e-6)


async def test_events_of_many_producers_are_embedded_in_few_calls(
    start_gateway: StartGateway, provider: Provider
) -> None:
    async with start_gateway(models=models(provider)) as gateway, client_of(gateway) as client:
        events = [client.upsert("c", id=f"d{i}", content=f"text {i}") for i in range(200)]
        assert len(await asyncio.gather(*events)) == 200
        assert sum(map(len, provider.texts)) == 200
        assert len(provider.requests) <= 20
        for i in range(0, 200, 20):
            await assert_embeds(client, f"d{i}", f"text {i}")
        found = await client.search("c", text="text 7", k=1)
        assert (found.hits[0].id, round(found.hits[0].score, 5)) == ("d7", 1.0)


async def test_nothing_is_embedded_twice_nor_pushed_without_a_change(
    start_gateway: StartGateway, provider: Provider
) -> None:
    async with start_gateway(models=models(provider)) as gateway, client_of(gateway) as client:
        fields = {"name": "Lamp", "tags": ["red", "tall"], "price": 10}
        await client.upsert("c", id="lamp", metadata=fields)
        async with json_socket(gateway.ws) as room:
            await room.ask(action="subscribe", collection="c")
            again = await client.upsert("c", id="lamp", metadata=dict(reversed(fields.items())))
            assert again.results[0].status == "unchanged"
            await client.patch("c", "lamp", {"price": 9})
            await client.upsert("c", id="other", content="Lamp | red, tall")
            await client.patch("c", "lamp", {"name": "Torch"})
            await client.patch("c", "lamp", {"name": "Lamp"})
            events = [(event["document_id"], event["event_type"]) for event in await room.events(4)]
            assert events == [("lamp", "update"), ("other", "insert"), ("lamp", "update"), ("lamp", "update")]
        assert provider.texts == [["Lamp | red, tall"], ["Torch | red, tall"]]
        await assert_embeds(client, "lamp", "Lamp | red, tall", version=4)
        async with aiohttp.ClientSession() as session, session.get(f"{gateway.http}/v1/stats") as answer:
            stats = await answer.json()
        (model,) = (one for one in stats["models"] if one["name"] == "m")
        assert (model["calls"], model["texts"], model["saved_texts"]) == (2, 2, 4)
        (collection,) = stats["collections"]
        assert (collection["unchanged_texts"], collection["found_texts"]) == (2, 2)


async def test_with_a_fifth_of_calls_failing_each_event_is_applied_once_and_right(
    start_gateway: StartGateway, provider: Provider
) -> None:
    choose = faults.failing(0.2, latency_s=0.002, drip_s=1.5, seed=3)

    async def at_random(asked: Asked) -> web.StreamResponse:
        return await choose()(asked)

    provider.otherwise = at_random
    async with (
        start_gateway(models=models(provider, timeout_s=0.3, concurrency=8)) as gateway,
        client_of(gateway) as client,
    ):
        async with json_socket(gateway.ws) as room:
            await room.ask(action="subscribe", collection="c")

            async def produce(producer: int) -> None:
                for i in range(25):
                    await insist(client, f"p{producer}:{i}", f"{producer} says {i}", f"e{producer}:{i}")

            async with asyncio.timeout(50):
                await asyncio.gather(*(produce(producer) for producer in range(8)))
            pushed = [event["document_id"] for event in await room.events(200)]
        assert sorted(pushed) == sorted(f"p{p}:{i}" for p in range(8) for i in range(25))
        assert len(provider.requests) > provider.answered, "calls did fail"
        for p, i in itertools.product(range(8), range(25)):
            await assert_embeds(client, f"p{p}:{i}", f"{p} says {i}")


async def test_while_the_service_is_away_vectors_go_on_and_texts_are_refused_at_once(
    start_gateway: StartGateway, provider: Provider
) -> None:
    async with start_gateway(models=models(provider)) as gateway, client_of(gateway) as client:
        await client.upsert("c", id="before", content="before")
        provider.otherwise = faults.status(500)
        refused = asyncio.create_task(insist(client, "kept", "kept", "kept"))
        with pytest.raises(Unavailable, match="out of reach") as away:
            await client.upsert("c", id="first", content="first")
        assert away.value.code == "embedding_unavailable"
        calls = len(provider.requests)
        for i in range(500):
            await client.upsert("c", id=f"v{i}", vector=[1, i, 0, 0, 0, 0, 0, 0])
            if not i % 50:
                with pytest.raises(Unavailable) as error:
                    await client.upsert("c", id=f"t{i}", content=f"never seen {i}")
                assert error.value.retry_after_s is not None
        assert len(provider.requests) - calls < 20, "the circuit is open"
        with pytest.raises(NotFound):
            await client.get("c", "first")
        await client.upsert("c", id="again", content="before")
        await client.patch("c", "before", {"price": 1})
        with pytest.raises(Unavailable):
            await client.search("c", text="something else")
        assert (await client.search("c", text="before", k=1)).hits[0].id in ("before", "again")
        provider.otherwise = ok
        async with asyncio.timeout(20):
            assert await refused > 0
        await assert_embeds(client, "kept", "kept")


async def test_a_refused_key_says_what_to_do_and_is_read_again(
    start_gateway: StartGateway, provider: Provider, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("sk-old\n")
    refuse = faults.status(401)

    async def only_the_new(asked: Asked) -> web.StreamResponse:
        return await (ok if asked.headers["authorization"] == "Bearer sk-new" else refuse)(asked)

    provider.otherwise = only_the_new
    async with (
        start_gateway(models=models(provider, key_file=str(key))) as gateway,
        client_of(gateway) as client,
    ):
        with pytest.raises(Unavailable, match=r"401.*key_file") as refused:
            await client.upsert("c", id="a", content="a")
        assert "sk-old" not in str(refused.value)
        key.write_text("sk-new\n")
        await insist(client, "a", "a", "a")
        assert provider.requests[-1].headers["authorization"] == "Bearer sk-new"


async def test_one_text_the_service_refuses_fails_alone(start_gateway: StartGateway, provider: Provider) -> None:
    provider.otherwise = faults.refusing("too long")
    async with start_gateway(models=models(provider)) as gateway, client_of(gateway) as client:
        results = await asyncio.gather(
            *(client.upsert("c", id=f"d{i}", content=f"text {i}" + " too long" * (i == 13)) for i in range(40)),
            return_exceptions=True,
        )
        failed = [(i, one) for i, one in enumerate(results) if isinstance(one, Exception)]
        assert [(i, getattr(one, "code", None), getattr(one, "field", None)) for i, one in failed] == [
            (13, "invalid_argument", "content")
        ]


async def test_changes_of_a_document_keep_their_order_behind_a_slow_embedding(
    start_gateway: StartGateway, provider: Provider
) -> None:
    answer = asyncio.Event()
    provider.otherwise = faults.waiting(answer, ok)
    async with (
        start_gateway(models=models(provider, timeout_s=20, give_up_s=30)) as gateway,
        client_of(gateway) as client,
    ):
        changes = [
            client.upsert("c", id="d", content="first"),
            client.patch("c", "d", {"price": 1}),
            client.patch("c", "d", {"price": 2}),
            client.upsert("c", id="d", content="second"),
            client.patch("c", "d", {"price": 3}),
        ]
        events = [asyncio.create_task(change) for change in changes]
        other = await client.upsert("c", id="e", vector=[1.0] * DIMENSION)
        assert other.index_version == 1, "another document's change passes"
        while not provider.requests:
            await asyncio.sleep(0.001)
        answer.set()
        acks = await asyncio.gather(*events)
        assert [ack.results[0].version for ack in acks] == [1, 2, 3, 4, 5]
        await assert_embeds(client, "d", "second", version=5)
        assert (await client.get("c", "d")).metadata == {"price": 3}


async def test_two_producers_on_one_document_lose_no_update(start_gateway: StartGateway, provider: Provider) -> None:
    async with start_gateway(models=models(provider)) as gateway, client_of(gateway) as one, Client(gateway.ws) as two:
        await one.upsert("c", id="d", metadata={"name": "start", "n": 0})

        async def rename(client: Client, producer: str) -> None:
            await asyncio.gather(
                *(client.patch("c", "d", {"name": f"{producer} {i}", producer: i}) for i in range(100))
            )

        async def count(client: Client) -> None:
            for _ in range(30):
                while True:
                    stored = await client.get("c", "d")
                    try:
                        await client.patch("c", "d", {"n": stored.metadata["n"] + 1}, if_version=stored.version)
                        break
                    except Conflict:
                        continue

        await asyncio.gather(rename(one, "a"), rename(two, "b"), count(one), count(two))
        stored = await one.get("c", "d")
        assert (stored.metadata["a"], stored.metadata["b"], stored.metadata["n"]) == (99, 99, 60)
        assert stored.version == 1 + 200 + 60
        await assert_embeds(one, "d", stored.metadata["name"], version=261)


async def test_an_atomic_batch_is_all_there_or_not_at_all_when_one_text_fails(
    start_gateway: StartGateway, provider: Provider
) -> None:
    provider.otherwise = faults.refusing("poison")
    async with start_gateway(models=models(provider)) as gateway, client_of(gateway) as client:
        documents = [Document(f"d{i}", content=f"text {i}" if i != 150 else "poison") for i in range(300)]
        async with json_socket(gateway.ws) as room:
            await room.ask(action="subscribe", collection="c")
            with pytest.raises(Exception, match="poison"):
                await client.upsert("c", documents, atomic=True)
            assert not (await client.search("c", text="text 7")).hits
            documents[150] = Document("d150", content="fine")
            await client.upsert("c", documents, atomic=True)
            events = await room.events(301)
        assert [event["index_version"] for event in events[:300]] == list(range(1, 301))
        assert (events[300]["event_type"], events[300]["count"]) == ("batch_complete", 300)


def process(provider: Provider, tmp_path: Path) -> GatewayProcess:
    flags = ["--log-level", "error", "--models", json.dumps(models(provider, timeout_s=20, give_up_s=30))]
    return GatewayProcess(tmp_path / "data", flags)


async def test_a_crash_between_embedding_and_commit_leaves_nothing_half(provider: Provider, tmp_path: Path) -> None:
    """The store is locked, so that vectors come but can't be committed; then the gateway is killed."""
    with process(provider, tmp_path) as gateway:
        async with client_of(gateway) as client:
            await client.upsert("c", id="before", content="before")
            store = next((tmp_path / "data").rglob(STORE_FILE))
            lock = sqlite3.connect(store, isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")
            sent = asyncio.create_task(client.upsert("c", id="d", content="late", event_id="e"))
            while provider.answered < 2:
                await asyncio.sleep(0.001)
            gateway.kill()
            sent.cancel()
            await asyncio.gather(sent, return_exceptions=True)
        lock.execute("ROLLBACK")
        lock.close()
    with process(provider, tmp_path) as gateway:
        async with Client(gateway.ws) as client:
            with pytest.raises(NotFound):
                await client.get("c", "d")
            ack = await client.upsert("c", id="d", content="late", event_id="e")
            assert (ack.index_version, ack.results[0].status) == (2, "inserted")
            await assert_embeds(client, "d", "late")
            await assert_embeds(client, "before", "before")


async def test_a_crash_while_an_atomic_batch_is_embedded_leaves_nothing_of_it_then_or_later(
    provider: Provider, tmp_path: Path
) -> None:
    never = asyncio.Event()
    documents = [Document(f"d{i}", content=f"text {i}") for i in range(200)]
    with process(provider, tmp_path) as gateway:
        async with client_of(gateway) as client:
            provider.script = [ok, ok]
            provider.otherwise = faults.waiting(never, ok)
            sent = asyncio.create_task(client.upsert("c", documents, atomic=True))
            while len(provider.requests) < 3:
                await asyncio.sleep(0.001)
            gateway.kill()
            sent.cancel()
            await asyncio.gather(sent, return_exceptions=True)
    never.set()
    provider.otherwise = ok
    with process(provider, tmp_path) as gateway:
        async with Client(gateway.ws) as client:
            ack = await client.upsert("c", id="after", content="after")
            assert ack.index_version == 1
            assert [hit.id for hit in (await client.search("c", text="text 1", k=10)).hits] == ["after"]
            done = await client.upsert("c", documents, atomic=True)
            assert done.index_version == 201


async def test_a_model_that_became_another_is_refused_not_mixed(
    start_gateway: StartGateway, provider: Provider
) -> None:
    async with start_gateway(models=models(provider)) as gateway, client_of(gateway) as client:
        await client.upsert("c", id="a", content="a")
    async with start_gateway(models=models(provider, model="large")) as gateway, Client(gateway.ws) as client:
        with pytest.raises(Unavailable, match="was made when model 'm' was small@8"):
            await client.upsert("c", id="b", content="b")
        await client.patch("c", "a", {"price": 1})
        assert (await client.search("c", id="a", k=1)).index_version == 2


async def test_a_search_for_a_text_of_a_document_needs_no_service(
    start_gateway: StartGateway, provider: Provider
) -> None:
    async with start_gateway(models=models(provider)) as gateway, client_of(gateway) as client:
        await client.upsert("c", id="a", content="seen before")
    provider.otherwise = faults.status(401)
    async with start_gateway(models=models(provider)) as gateway, Client(gateway.ws) as client:
        assert (await client.search("c", text="seen before")).hits[0].id == "a"
        with pytest.raises(Unavailable):
            await client.search("c", text="never seen")


async def test_a_missing_key_is_noticed_at_the_start(
    start_gateway: StartGateway, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    async with start_gateway(models=models(provider, key_env="HOTINDEX_TESTS_NO_SUCH_KEY")):
        assert "HOTINDEX_TESTS_NO_SUCH_KEY" in capsys.readouterr().out
        assert not provider.requests


async def test_a_first_write_of_texts_and_vectors_says_what_to_do(start_gateway: StartGateway) -> None:
    async with start_gateway() as gateway, Client(gateway.ws) as client:
        with pytest.raises(InvalidRequest, match="make it first") as mixed:
            await client.upsert("new", [Document("t", content="text"), Document("v", [1.0, 2.0])])
        assert mixed.value.field == "collection"
        with pytest.raises(NotFound):
            await client.get("new", "t")


async def test_a_gateway_without_default_model_takes_vectors_only(start_gateway: StartGateway) -> None:
    async with start_gateway(default_model="none") as gateway, Client(gateway.ws) as client:
        with pytest.raises(Exception, match="default_model is none"):
            await client.upsert("c", id="a", content="a")
        await client.upsert("c", id="a", vector=[1, 2])
        with pytest.raises(Exception, match="no model"):
            await client.upsert("c", id="b", content="b")


async def test_a_gateway_that_stops_tells_who_waits_for_a_service_that_hangs(
    provider: Provider, tmp_path: Path
) -> None:
    provider.otherwise = faults.never
    with process(provider, tmp_path) as gateway:
        async with client_of(gateway) as client:
            sent = asyncio.create_task(client.upsert("c", id="d", content="d"))
            while not provider.requests:
                await asyncio.sleep(0.001)
            status = await asyncio.to_thread(gateway.stop, 20.0)
            with pytest.raises((Unavailable, ConnectionLost)):
                await sent
            assert status == 0


async def test_a_chain_of_changes_of_one_text_takes_few_calls(start_gateway: StartGateway, provider: Provider) -> None:
    """Each change waited for the call of the one before it; in one transaction the whole was planned once for each."""
    async with start_gateway(models=models(provider)) as gateway, client_of(gateway) as client:
        await client.upsert("c", id="d", metadata={"name": "start", "tags": ["x"]})
        changes: list[dict[str, Any]] = [
            {"name": f"name {i}"} if i % 2 else {"description": f"says {i}"} for i in range(60)
        ]
        calls = len(provider.requests)
        await asyncio.gather(*(client.patch("c", "d", change) for change in changes))
        assert len(provider.requests) - calls <= 4
        await assert_embeds(client, "d", "name 59 | says 58 | x", version=61)
        calls = len(provider.requests)
        async with client.transaction("c") as tx:
            for i in range(2000):
                tx.patch("d", {"name": f"again {i}"}, if_version=61 + i)
        assert len(provider.requests) - calls <= 2000 // 64 + 1
        await assert_embeds(client, "d", "again 1999 | says 58 | x", version=2061)

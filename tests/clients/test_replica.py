"""Replicas of collections in real gateways, which are killed and come back."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotindex import Client, ConnectionLost, Document, InvalidFile, NotFound, Replica

from gateway.app import Gateway
from gateway.commands.process import GatewayProcess
from tests.clients.test_client import FAST
from tests.conftest import StartGateway
from tests.ports import free_port

EXAMPLE = Path(__file__).parent.parent.parent / "clients" / "examples" / "replica.py"


def documents(count: int, seed: int = 1) -> list[Document]:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, 8)).astype(np.float32)
    return [Document(f"d{i}", row, metadata={"n": i, "kind": "ab"[i % 2]}) for i, row in enumerate(rows)]


def held(replica: Replica) -> dict[str, Any]:
    return {one.id: (one.version, one.metadata, one.vector and one.vector.tolist()) for one in replica}


async def stored(client: Client, ids: int) -> dict[str, Any]:
    found = {}
    for i in range(ids):
        try:
            one = await client.get("m", f"d{i}", include=["vector"])
        except NotFound:
            continue
        found[one.id] = (one.version, one.metadata, one.vector and one.vector.tolist())
    return found


async def test_a_replica_follows_and_searches_as_the_gateway_does(gateway: Gateway) -> None:
    async with Client(gateway.ws) as client:
        await client.upsert("m", documents(300))
        async with Replica("m", gateway.ws) as replica:
            await replica.synced()
            assert len(replica) == 300
            await client.delete("m", "d1")
            await client.patch("m", "d2", {"n": None, "new": True})
            ack = await client.upsert("m", id="d3", vector=[1] * 8)
            await replica.reached(ack.index_version)
            assert held(replica) == await stored(client, 300)
            assert "d1" not in replica
            assert replica.get("d1") is None
            for query in (documents(5, seed=2)[i].vector for i in range(5)):
                assert query is not None
                ours = replica.search(query, 7)
                theirs = await client.search("m", vector=query, k=7, exact=True)
                assert [hit.id for hit in ours] == [hit.id for hit in theirs.hits]
                assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs.hits], abs=1e-5)
                some = replica.search(query, 5, where=lambda metadata: metadata.get("kind") == "a")
                same = await client.search("m", vector=query, k=5, exact=True, filter={"kind": "a"})
                assert [hit.id for hit in some] == [hit.id for hit in same.hits]


@pytest.mark.parametrize("metric", ["ip", "l2"])
async def test_scores_are_the_gateways_for_every_metric(gateway: Gateway, metric: Any) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        await session.put(f"{gateway.http}/v1/collections/m", json={"dimension": 8, "metric": metric})
    async with Client(gateway.ws) as client, Replica("m", gateway.ws) as replica:
        ack = await client.upsert("m", documents(50))
        await replica.reached(ack.index_version)
        ours = replica.search([0.5] * 8, 5)
        theirs = await client.search("m", vector=[0.5] * 8, k=5, exact=True)
        assert [hit.id for hit in ours] == [hit.id for hit in theirs.hits]
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs.hits], rel=1e-4)


async def test_a_filtered_replica_lets_go_of_what_leaves(gateway: Gateway) -> None:
    async with Client(gateway.ws) as client:
        await client.upsert("m", documents(10))
        async with Replica("m", gateway.ws, filter={"kind": "a"}, include=()) as replica:
            await replica.synced()
            assert sorted(one.id for one in replica) == ["d0", "d2", "d4", "d6", "d8"]
            ack = await client.patch("m", "d0", {"kind": "c"})
            await replica.reached(ack.index_version)
            assert "d0" not in replica
            with pytest.raises(ValueError, match="no vectors"):
                replica.search([1] * 8)


async def test_it_begins_with_its_file_also_without_a_gateway(tmp_path: Path, start_gateway: StartGateway) -> None:
    path, port = tmp_path / "m.replica", free_port()
    async with start_gateway(data_dir=tmp_path / "data", ws_port=port) as gateway, Client(gateway.ws) as client:
        await client.upsert("m", documents(100))
        async with Replica("m", gateway.ws, path=path) as replica:
            await replica.synced()
        before = await stored(client, 100)
    async with Replica("m", gateway.ws, path=path, backoff=FAST) as replica:
        assert held(replica) == before
        assert not replica.in_sync
        async with start_gateway(data_dir=tmp_path / "data", ws_port=port) as gateway, Client(gateway.ws) as client:
            await client.delete("m", "d5")
            await client.upsert("m", id="d6", vector=[2] * 8)
            await replica.synced()
            await replica.reached(102)
            assert held(replica) == await stored(client, 100)
    with pytest.raises(ConnectionLost):
        async with Replica("m", gateway.ws):
            pass


async def test_a_collection_made_anew_replaces_what_the_file_held(tmp_path: Path, gateway: Gateway) -> None:
    import aiohttp

    path = tmp_path / "m.replica"
    async with Client(gateway.ws) as client:
        await client.upsert("m", documents(10))
        async with Replica("m", gateway.ws, path=path) as replica:
            await replica.synced()
        async with aiohttp.ClientSession() as session:
            await session.delete(f"{gateway.http}/v1/collections/m")
        await client.upsert("m", documents(20)[10:])
        async with Replica("m", gateway.ws, path=path) as replica:
            await replica.synced()
            assert held(replica) == await stored(client, 20)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
async def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path, gateway: Gateway, damage: str) -> None:
    path = tmp_path / "m.replica"
    async with Client(gateway.ws) as client:
        await client.upsert("m", documents(10))
    async with Replica("m", gateway.ws, path=path) as replica:
        await replica.synced()
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"cut": bytes(data[:-10]), "empty": b""}.get(damage, bytes(data)))
    where = {"kind": "a"} if damage == "other" else None
    with pytest.raises(InvalidFile, match=r"m\.replica"):
        async with Replica("m", gateway.ws, path=path, filter=where):
            pass


async def test_what_ends_a_replica_is_raised(gateway: Gateway) -> None:
    replica = Replica("nowhere", gateway.ws)
    await replica.__aenter__()
    with pytest.raises(NotFound):
        await replica.synced()
    with pytest.raises(NotFound):
        await replica.ended()
    with pytest.raises(NotFound):
        await replica.__aexit__(None, None, None)


async def test_it_stays_equal_through_kills_of_the_gateway(tmp_path: Path) -> None:
    rng = random.Random(1)
    flags = ["--ws-port", str(free_port()), "--http-port", "0", "--log-level", "error"]
    with GatewayProcess(tmp_path / "data", flags) as gateway:
        url = gateway.ws
        async with Client(url, backoff=FAST) as client:
            await client.upsert("m", documents(50))
        replica = Replica("m", url, path=tmp_path / "m.replica", backoff=FAST)
        await replica.__aenter__()
        await replica.synced()
        await _change(url, rng)
        gateway.kill()
    for _ in range(3):
        with GatewayProcess(tmp_path / "data", flags) as gateway:
            await _change(url, rng)
            async with Client(url, backoff=FAST) as client:
                ack = await client.upsert("m", id="d0", vector=array("f", [rng.random() for _ in range(8)]))
                await replica.reached(ack.index_version)
                assert held(replica) == await stored(client, 60)
            gateway.kill()
    await replica.__aexit__(None, None, None)


async def _change(url: str, rng: random.Random) -> None:
    async with Client(url, backoff=FAST) as client:
        for _ in range(40):
            document_id = f"d{rng.randrange(60)}"
            if rng.random() < 0.2:
                await client.delete("m", document_id)
            else:
                await client.upsert("m", id=document_id, vector=[rng.random() for _ in range(8)])


async def test_the_example_keeps_its_copy_through_a_kill(tmp_path: Path) -> None:
    flags = ["--ws-port", str(free_port()), "--http-port", "0", "--log-level", "error"]
    with GatewayProcess(tmp_path / "data", flags) as gateway:
        url = gateway.ws
        async with Client(url) as client:
            await client.upsert("m", documents(5))
        command = [sys.executable, str(EXAMPLE), url, "m", str(tmp_path / "m.replica")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as example:  # noqa: ASYNC220
            assert example.stdout is not None
            await _says(example.stdout, "in sync: 5 documents at index_version 5")
            gateway.kill()
            await _says(example.stdout, "not in sync: 5 documents at index_version 5")
            with GatewayProcess(tmp_path / "data", flags):
                async with Client(url) as client:
                    await client.delete("m", "d1")
                await _says(example.stdout, "in sync: 4 documents at index_version 6")
            example.kill()


async def _says(stream: Any, line: str) -> None:
    async with asyncio.timeout(30):
        while (await asyncio.to_thread(stream.readline)).strip() != line:
            pass


async def test_leaving_while_the_file_is_written_neither_fails_nor_damages_it(gateway: Gateway, tmp_path: Path) -> None:
    """A thread can't be cancelled: a last save once wrote the file at the same time as the one before it."""
    path = tmp_path / "m.replica"
    async with Client(gateway.ws) as client:
        await client.upsert("m", [Document(f"d{i}", [1.0, i] * 64) for i in range(1000)])
        for turn in range(15):
            async with Replica("m", gateway.ws, path=path, save_interval_s=0.001) as replica:
                await replica.synced()
                for i in range(5):
                    ack = await client.upsert("m", id="d1", vector=[turn + 1.0, i] * 64)
                    await replica.reached(ack.index_version)
            assert not path.with_name("m.replica.new").exists()
        async with Replica("m", gateway.ws, path=path) as replica:
            assert replica.index_version >= 1000, "from the file"


async def test_wrong_arguments_are_named(gateway: Gateway, tmp_path: Path) -> None:
    async with Client(gateway.ws) as client:
        await client.upsert("m", documents(3))
    async with Replica("m", gateway.ws, path=str(tmp_path / "text.replica"), filter={"n": {"$in": (0, 1)}}) as replica:
        with pytest.raises(ValueError, match="no state yet"):
            replica.search([1] * 8)
        await replica.synced()
        for wrong, named in (
            ([1] * 7, "7 numbers"),
            ([0] * 8, "zero"),
            ([float("nan")] * 8, "finite"),
            (np.ones((2, 8)), "finite numbers"),
        ):
            with pytest.raises(ValueError, match=named):
                replica.search(wrong)
        with pytest.raises(ValueError, match="k is 0"):
            replica.search([1] * 8, k=0)
    async with Replica("m", gateway.ws, path=str(tmp_path / "text.replica"), filter={"n": {"$in": (0, 1)}}) as replica:
        assert len(replica) == 2, "a tuple is what it was"
    with pytest.raises(InvalidFile, match="no folder"):
        await Replica("m", gateway.ws, path=tmp_path / "none" / "m.replica").__aenter__()

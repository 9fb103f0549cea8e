"""What a crash leaves: everything acknowledged, and nothing half."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from pathlib import Path

from hotindex import Client, ConnectionLost, Document, Unavailable, Update
from hotindex.backoff import Backoff

from gateway.commands.process import GatewayProcess
from tests.conftest import json_socket
from tests.ports import free_port

QUIET = ("--log-level", "error")


async def test_a_thousand_acknowledged_vectors_survive_kill_9_and_the_room_resumes(tmp_path: Path) -> None:
    numbers = random.Random(1)
    vectors = {f"d{i}": [numbers.uniform(-1, 1) for _ in range(16)] for i in range(1000)}
    with GatewayProcess(tmp_path / "data", QUIET) as gateway:
        async with Client(gateway.ws) as client:
            for document_id, vector in vectors.items():
                await client.upsert("m", id=document_id, vector=vector)
                found = await client.search("m", vector=vector, k=1)
                assert found.hits[0].id == document_id, "found by the very next search"
        gateway.kill()
    with GatewayProcess(tmp_path / "data", QUIET) as gateway:
        async with Client(gateway.ws) as client, json_socket(gateway.ws) as room:
            for document_id, vector in vectors.items():
                found = await client.search("m", vector=vector, k=1, include=["vector"])
                assert (found.hits[0].id, found.hits[0].version) == (document_id, 1)
            subscribed = await room.ask(action="subscribe", collection="m", since=990)
            assert (subscribed["recovered"], subscribed["index_version"]) == (True, 1000)
            assert [event["document_id"] for event in await room.events(10)] == [f"d{i}" for i in range(990, 1000)]
            await client.delete("m", "d0")
            assert (await room.events(1))[0]["index_version"] == 1001


class Load:
    """Writers at full speed through a client, and a replica kept by another."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.acknowledged: dict[str, int] = {}
        self.replica: dict[str, int] = {}

    @property
    def acknowledgements(self) -> int:
        return sum(self.acknowledged.values())

    async def write(self, client: Client, writer: int) -> None:
        for number in itertools.count():
            if self.stop.is_set():
                return
            document = Document(f"w{writer}:{number % 40}", [writer + 1, number, number % 7], metadata={"n": number})
            # Only what may be tried again is passed over: the gateway is away now and then.
            with contextlib.suppress(ConnectionLost, Unavailable):
                ack = await client.upsert("m", [document])
                self.acknowledged[document.id] = ack.results[0].version

    async def replicate(self, client: Client) -> None:
        async for update in client.subscribe("m", since=0):
            if isinstance(update, Update):
                assert update.document_id is not None
                assert update.version is not None
                assert update.version > self.replica.get(update.document_id, 0), "twice, or out of order"
                self.replica[update.document_id] = update.version


async def test_a_replica_stays_equal_through_kill_9_under_load(tmp_path: Path) -> None:
    """Four times: writers at full speed, the gateway killed at a random moment, started again on the same port."""
    port = free_port()
    flags = (*QUIET, "--ws-port", str(port), "--http-port", "0", "--snapshot-interval-s", "0.3", "--hot-target", "16")
    url = f"ws://127.0.0.1:{port}"
    moments = random.Random(2)
    backoff = Backoff(first_s=0.01, limit_s=0.1)
    load = Load()
    process = GatewayProcess(tmp_path / "data", flags).__enter__()
    try:
        async with Client(url, backoff=backoff) as client, Client(url, backoff=backoff) as listener:
            await client.upsert("m", id="first", vector=[1, 1, 1])
            writing = [asyncio.create_task(load.write(client, i)) for i in range(3)]
            replicating = asyncio.create_task(load.replicate(listener))
            for _ in range(4):
                enough = load.acknowledgements + 200
                while load.acknowledgements < enough:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(moments.uniform(0, 0.2))
                process.kill()
                process = await asyncio.to_thread(GatewayProcess(tmp_path / "data", flags).__enter__)
            load.stop.set()
            await asyncio.gather(*writing)
            stored = {i: (await client.get("m", i)).version for i in load.acknowledged}
            assert all(stored[i] >= version for i, version in load.acknowledged.items()), "acknowledged, then lost"
            while any(load.replica.get(i) != version for i, version in stored.items()):
                assert not replicating.done(), replicating.exception()
                await asyncio.sleep(0.01)
            replicating.cancel()
            search = await client.search("m", vector=[1, 0, 0], k=1000)
            assert {hit.id: hit.version for hit in search.hits if hit.id != "first"} == stored
    finally:
        process.stop()


class Swaps:
    """Writers that each have one group of documents, and replace it by the next in one transaction."""

    def __init__(self, writers: int, size: int) -> None:
        self.writers = writers
        self.size = size
        self.stop = asyncio.Event()
        self.acknowledged = dict.fromkeys(range(writers), 0)

    async def write(self, client: Client, writer: int) -> None:
        """Applied twice, or after a half, a transaction would find another version of the counter, and be a conflict."""
        while not self.stop.is_set():
            number = self.acknowledged[writer] + 1
            async with client.transaction("m") as tx:
                tx.patch(f"counter {writer}", {"n": number}, if_version=number)
                tx.delete(*self.group(writer, number - 1))
                for document_id in self.group(writer, number):
                    tx.upsert(document_id, vector=[writer + 1, number], metadata={"writer": writer, "n": number})
            assert tx.ack is not None
            self.acknowledged[writer] = number

    def group(self, writer: int, number: int) -> list[str]:
        return [f"{writer}:{number}:{i}" for i in range(self.size)]

    async def check(self, client: Client) -> None:
        """Look at everything as of one moment."""
        acknowledged = dict(self.acknowledged)
        found = await client.search("m", vector=[1, 1], k=1000)
        stored = {hit.id: hit.metadata["n"] for hit in found.hits}
        for writer, number in acknowledged.items():
            counted = stored.pop(f"counter {writer}")
            assert counted >= number, "acknowledged, then lost"
            whole = dict.fromkeys(self.group(writer, counted), counted) if counted else {}
            assert {i: stored.pop(i, None) for i in whole} == whole
        assert not stored, "half of a transaction"


async def test_each_transaction_is_there_whole_or_not_at_all_after_kill_9(tmp_path: Path) -> None:
    """Five times: transactions under way from all sides, the gateway killed at a random moment, and started again. The
    clients send again what was cut off.
    """
    port = free_port()
    flags = (*QUIET, "--ws-port", str(port), "--http-port", "0", "--snapshot-interval-s", "0.3", "--hot-target", "16")
    url = f"ws://127.0.0.1:{port}"
    moments = random.Random(3)
    backoff = Backoff(first_s=0.01, limit_s=0.1)
    swaps = Swaps(writers=12, size=20)
    process = GatewayProcess(tmp_path / "data", flags).__enter__()
    try:
        async with Client(url, backoff=backoff) as client, Client(url, backoff=backoff) as other:
            for writer in range(swaps.writers):
                await client.upsert("m", id=f"counter {writer}", vector=[1, writer], metadata={"n": 0})
            writing = [asyncio.create_task(swaps.write((client, other)[i % 2], i)) for i in range(swaps.writers)]
            for _ in range(5):
                enough = sum(swaps.acknowledged.values()) + 60
                while sum(swaps.acknowledged.values()) < enough:
                    assert [task.exception() for task in writing if task.done()] == []
                    await asyncio.sleep(0.01)
                await asyncio.sleep(moments.uniform(0, 0.1))
                process.kill()
                process = await asyncio.to_thread(GatewayProcess(tmp_path / "data", flags).__enter__)
                await swaps.check(other)
            swaps.stop.set()
            await asyncio.gather(*writing)
            await swaps.check(client)
            counters = [(await client.get("m", f"counter {i}")).metadata["n"] for i in range(swaps.writers)]
            assert counters == list(swaps.acknowledged.values())
    finally:
        process.stop()

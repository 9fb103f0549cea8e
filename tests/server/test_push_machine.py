"""A gateway on real sockets, whose subscribers stall, vanish and resume while documents change: at rest each holds what
the store holds, and none has seen an index_version twice or out of order."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import websockets
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from websockets.asyncio.client import ClientConnection

from gateway.app import Gateway, running
from gateway.engine.filter import Filter
from gateway.settings import load
from tests.conftest import JsonSocket, json_socket

NUMBERS = st.integers(0, 5)
WHERE: list[dict[str, Any] | None] = [None, {"x": {"$gte": 3}}, {"y": {"$exists": True}}]
PADDING = "p" * 20_000


class Subscriber:
    """Holds what it was told of, across its connections."""

    def __init__(self, where: dict[str, Any] | None, *, batch: bool) -> None:
        self.where = where
        self.batch = batch
        self.held: dict[str, tuple[int, dict[str, Any]]] = {}
        self.position: int | None = None
        self.epoch: str | None = None
        self.connection: ClientConnection | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ponged = asyncio.Event()

    async def subscribe(self, url: str, since: int | None, epoch: str | None = None) -> None:
        narrow = socket.socket()
        # What a stalled client leaves to the gateway is soon more than the kernel takes.
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect((urlsplit(url).hostname, urlsplit(url).port))
        self.connection = await websockets.connect(
            url, sock=narrow, max_queue=None, ping_interval=None, close_timeout=0.1
        )
        await self.connection.recv()
        command = {"action": "subscribe", "collection": "m", "filter": self.where, "batch": self.batch}
        await self.connection.send(json.dumps({**command, "since": since, "epoch": epoch}))
        reply = json.loads(await self.connection.recv())
        if since is not None and not reply["recovered"]:
            await self.vanish()
            await self.subscribe(url, 0)
            return
        self.position, self.epoch = since or 0, reply["epoch"]
        self._reading = asyncio.create_task(self._read(self.connection))

    async def _read(self, connection: ClientConnection) -> None:
        async for data in connection:
            message = json.loads(data)
            if message["type"] == "reset":
                self.held.clear()
                self.position = 0
            elif message["type"] == "pong":
                self._ponged.set()
            else:
                assert message["type"] == "index_update", message
                for event in message["events"] if "events" in message else [message["event"]]:
                    self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        assert self.position is not None, "it has begun"
        assert event["index_version"] > self.position, "never twice, never out of order"
        self.position = event["index_version"]
        if event["event_type"] == "delete" or event.get("left"):
            self.held.pop(event["document_id"], None)
        else:
            self.held[event["document_id"]] = (event["version"], event["metadata"])

    async def vanish(self, last_words: bytes = b"") -> None:
        if self.connection is None:
            return
        self.connection.transport.write(last_words)
        self.connection.transport.abort()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self.connection.wait_closed()
        self.connection = self._reading = None

    def stall(self) -> None:
        if self.connection is not None:
            self.connection.transport.pause_reading()

    def wake(self) -> None:
        if self.connection is not None:
            self.connection.transport.resume_reading()

    async def answered(self) -> None:
        """Wait until all that was written before is read."""
        assert self.connection is not None, "it is connected"
        self._ponged.clear()
        await self.connection.send('{"action":"ping"}')
        await self._ponged.wait()
        assert self._reading is not None, "it reads"
        if self._reading.done():
            self._reading.result()


class PushMachine(RuleBasedStateMachine):
    subscribers: Bundle[Subscriber] = Bundle("subscribers")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="hotindex-push-"))
        self.runner = asyncio.Runner()
        self.everyone: list[Subscriber] = []
        self.documents: dict[str, tuple[int, dict[str, Any]]] = {}
        self.runner.run(self._start())

    async def _start(self) -> None:
        self.stack = AsyncExitStack()
        flags = {"ws_port": 0, "http_port": 0, "data_dir": self.folder, "room_log_bytes": 60_000}
        self.gateway: Gateway = await self.stack.enter_async_context(running(load(flags, None)))
        self.producer: JsonSocket = await self.stack.enter_async_context(json_socket(self.gateway.ws))
        await self._write("first", {"x": 0})

    async def _write(self, document_id: str, metadata: dict[str, Any]) -> None:
        command = {"action": "upsert", "collection": "m", "id": document_id, "vector": [1, 1], "metadata": metadata}
        ack = await self.producer.ask(**command)
        self.documents[document_id] = (ack["results"][0]["version"], metadata)

    @rule(number=NUMBERS, x=NUMBERS, y=st.booleans(), large=st.booleans())
    def write(self, number: int, x: int, y: bool, large: bool) -> None:
        metadata = {"x": x, **({"y": 1} if y else {}), **({"padding": PADDING} if large else {})}
        self.runner.run(self._write(f"d{number}", metadata))

    @rule(number=NUMBERS, count=st.integers(1, 60))
    def write_often(self, number: int, count: int) -> None:
        for turn in range(count):
            self.runner.run(self._write(f"d{number}", {"x": turn % 6, "turn": turn, "padding": PADDING}))

    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        self.runner.run(self.producer.ask(action="delete", collection="m", id=f"d{number}"))
        self.documents.pop(f"d{number}", None)

    @rule(target=subscribers, where=st.sampled_from(WHERE), batch=st.booleans())
    def join(self, where: dict[str, Any] | None, batch: bool) -> Subscriber:
        subscriber = Subscriber(where, batch=batch)
        self.everyone.append(subscriber)
        self.runner.run(subscriber.subscribe(self.gateway.ws, 0))
        return subscriber

    @rule(subscriber=subscribers, number=NUMBERS)
    def stall_while_much_is_written(self, subscriber: Subscriber, number: int) -> None:
        subscriber.stall()
        self.write_often(number, 25)

    @rule(subscriber=subscribers)
    def wake(self, subscriber: Subscriber) -> None:
        subscriber.wake()

    @rule(
        subscriber=subscribers,
        last_words=st.sampled_from([b"", b"\x81", b"\x81\xfe\x00", b"\x81\x85\0\0\0\0ab", b"\xff"]),
    )
    def vanish(self, subscriber: Subscriber, last_words: bytes) -> None:
        self.runner.run(subscriber.vanish(last_words))

    @rule(subscriber=subscribers, how=st.sampled_from(["old", "old", "future", "foreign"]))
    def resume(self, subscriber: Subscriber, how: str) -> None:
        if subscriber.connection is not None:
            return
        since, epoch = subscriber.position or 0, subscriber.epoch
        if how == "future":
            since += 1_000_000
        elif how == "foreign":
            epoch = "another"
        if since == 0:
            epoch = None
        self.runner.run(subscriber.subscribe(self.gateway.ws, since, epoch))

    @rule()
    def pass_time(self) -> None:
        self.runner.run(asyncio.sleep(0.002))

    @invariant()
    def nobody_failed(self) -> None:
        for subscriber in self.everyone:
            reading = subscriber._reading
            if reading is not None and reading.done() and not reading.cancelled():
                reading.result()

    def teardown(self) -> None:
        try:
            self.runner.run(self._at_rest())
        finally:
            self.runner.run(self.stack.aclose())
            self.runner.close()
            shutil.rmtree(self.folder)

    async def _at_rest(self) -> None:
        async with asyncio.timeout(20):
            for subscriber in self.everyone:
                if subscriber.connection is None:
                    await subscriber.subscribe(self.gateway.ws, subscriber.position or 0, subscriber.epoch)
                subscriber.wake()
            while self.gateway.node.hosted("m").room.behind:
                await asyncio.sleep(0.002)
            for subscriber in self.everyone:
                await subscriber.answered()
        for subscriber in self.everyone:
            where = Filter(subscriber.where) if subscriber.where else None
            expected = {i: one for i, one in self.documents.items() if where is None or where.matches(one[1])}
            assert subscriber.held == expected
            await subscriber.vanish()


PushMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40)
TestPush = pytest.mark.timeout(240)(PushMachine.TestCase)

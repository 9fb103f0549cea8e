"""Real parts for the tests: gateways on free ports, and sockets that speak nothing but WebSocket and JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import hypothesis
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from gateway.app import Gateway, running
from gateway.settings import load

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

JsonMessage: TypeAlias = dict[str, Any]


class JsonSocket:
    """A client made of `websockets` and `json` alone."""

    def __init__(self, connection: ClientConnection, greeting: JsonMessage) -> None:
        self.connection = connection
        self.greeting = greeting

    async def send(self, message: JsonMessage) -> None:
        await self.connection.send(json.dumps(message))

    async def receive(self) -> JsonMessage:
        message: JsonMessage = json.loads(await self.connection.recv())
        return message

    async def ask(self, **message: Any) -> JsonMessage:
        """Send a command and return the next message."""
        await self.send(message)
        return await self.receive()

    async def reply(self, **message: Any) -> JsonMessage:
        """Send a command and return its reply, passing over pushes."""
        await self.send({**message, "ref": "reply"})
        while (received := await self.receive()).get("ref") != "reply":
            pass
        return received

    async def events(self, count: int) -> list[JsonMessage]:
        """Return the next `count` events, from single and from batched pushes."""
        events: list[JsonMessage] = []
        while len(events) < count:
            message = await self.receive()
            if message["type"] == "index_update":
                events += message["events"] if "events" in message else [message["event"]]
        return events


@asynccontextmanager
async def json_socket(url: str) -> AsyncIterator[JsonSocket]:
    async with websockets.connect(url) as connection:
        yield JsonSocket(connection, json.loads(await connection.recv()))


StartGateway: TypeAlias = Callable[..., AbstractAsyncContextManager[Gateway]]


@pytest.fixture
def start_gateway(tmp_path: Path) -> StartGateway:
    """Return a function that starts a gateway on this test's data directory, in this process."""

    def start(**settings: Any) -> AbstractAsyncContextManager[Gateway]:
        flags = {"ws_port": 0, "http_port": 0, "data_dir": tmp_path / "data", "node": "test", **settings}
        return running(load(flags, None))

    return start


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> AsyncIterator[Gateway]:
    async with start_gateway() as addresses:
        yield addresses


@pytest.fixture
async def socket(gateway: Gateway) -> AsyncIterator[JsonSocket]:
    async with json_socket(gateway.ws) as connected:
        yield connected

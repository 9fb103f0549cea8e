"""Clients that watch, and what is written for them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import numpy as np
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from gateway.app import Gateway
from tests.conftest import JsonMessage, JsonSocket


class Watcher:
    """A client that holds the list of each of its watches, and changes it as it is told."""

    def __init__(self, connection: ClientConnection, *, binary: bool) -> None:
        self.connection = connection
        self.held: dict[str, dict[str, JsonMessage]] = {}
        self.index_versions: dict[str, int] = {}
        self.updates: list[JsonMessage] = []
        self.told: list[tuple[str, int, list[tuple[str, float]]]] = []
        """Each list it held: whose, as of when, ids and scores."""
        self._encode: Callable[[Any], Any] = msgpack.packb if binary else json.dumps
        self._decode: Callable[[Any], Any] = msgpack.unpackb if binary else json.loads

    async def receive(self) -> JsonMessage:
        message: JsonMessage = self._decode(await self.connection.recv())
        match message["type"]:
            case "watching":
                self.held[message["watch_id"]] = {item["id"]: item for item in message["results"]}
                self.index_versions[message["watch_id"]] = message["index_version"]
                self._note(message)
            case "watch_update":
                self._apply(message)
        return message

    def _apply(self, update: JsonMessage) -> None:
        held = self.held[update["watch_id"]]
        assert update["index_version"] >= self.index_versions[update["watch_id"]]
        self.index_versions[update["watch_id"]] = update["index_version"]
        self.updates.append(update)
        for document_id in update["removed"]:
            del held[document_id]
        for item in update["added"]:
            assert item["id"] not in held
            held[item["id"]] = item
        for item in update["changed"]:
            assert item["id"] in held
            held[item["id"]] = item
        ids = self.ids(update["watch_id"])
        for item in (*update["added"], *update["changed"]):
            assert ids[item["rank"] - 1] == item["id"]
        self._note(update)

    def _note(self, message: JsonMessage) -> None:
        ranked = [(item["id"], item["score"]) for item in self.ranked(message["watch_id"])]
        self.told.append((message["watch_id"], message["index_version"], ranked))

    async def ask(self, **command: Any) -> JsonMessage:
        """Send a command and return its reply; what comes before is applied."""
        await self.connection.send(self._encode({**command, "ref": "ask"}))
        while (message := await self.receive()).get("ref") != "ask":
            pass
        del message["ref"]
        return message

    async def watch(self, collection: str = "m", **how: Any) -> str:
        message = await self.ask(action="watch", collection=collection, **how)
        assert message["type"] == "watching", message
        watch_id: str = message["watch_id"]
        return watch_id

    async def update(self) -> JsonMessage:
        """Return the next update."""
        while (message := await self.receive())["type"] != "watch_update":
            pass
        return message

    def ranked(self, watch_id: str) -> list[JsonMessage]:
        return sorted(self.held[watch_id].values(), key=lambda item: (-item["score"], item["id"]))

    def ids(self, watch_id: str) -> list[str]:
        return [item["id"] for item in self.ranked(watch_id)]


@asynccontextmanager
async def watcher(gateway: Gateway, *, binary: bool = False) -> AsyncIterator[Watcher]:
    subprotocol = Subprotocol("hotindex.v1.msgpack" if binary else "hotindex.v1.json")
    async with websockets.connect(gateway.ws, subprotocols=[subprotocol], max_queue=None) as connection:
        await connection.recv()
        yield Watcher(connection, binary=binary)


def at(angle: float) -> list[float]:
    """Return a vector that scores less with [1, 0] the larger its angle is."""
    return [math.cos(angle), math.sin(angle)]


async def fill(socket: JsonSocket, count: int = 30) -> None:
    documents = [{"id": f"d{i:02}", "vector": at(i / 20), "metadata": {"n": i}} for i in range(count)]
    assert (await socket.reply(action="upsert", collection="m", documents=documents))["type"] == "ack"


async def put(socket: JsonSocket, document_id: str, angle: float, **metadata: Any) -> JsonMessage:
    return await socket.reply(action="upsert", collection="m", id=document_id, vector=at(angle), metadata=metadata)


class Model:
    """What a collection held as of each index_version that was acknowledged."""

    def __init__(self) -> None:
        self.documents: dict[str, tuple[list[float], JsonMessage]] = {}
        self.states: dict[int, dict[str, tuple[list[float], JsonMessage]]] = {}

    def top(self, index_version: int, vector: list[float], k: int, group: int | None) -> list[tuple[str, float]]:
        query = np.array(vector, np.float32)
        scored = [
            (document_id, float(np.array(other, np.float32) @ query))
            for document_id, (other, metadata) in self.states[index_version].items()
            if group is None or metadata["group"] == group
        ]
        return sorted(scored, key=lambda one: (-one[1], one[0]))[:k]


def some_write(rng: random.Random, model: Model) -> JsonMessage:
    """Return a write, and note what it does."""
    ids = [f"d{rng.randrange(80):02}" for _ in range(rng.choice((1, 1, 1, 5)))]
    known = sorted(model.documents)
    kind = rng.random()
    if kind < 0.25 and known:
        gone = rng.sample(known, min(len(known), len(ids)))
        for document_id in gone:
            del model.documents[document_id]
        return {"action": "delete", "ids": gone}
    if kind < 0.45 and known:
        document_id, changes = rng.choice(known), {"group": rng.randrange(3), "r": rng.random()}
        model.documents[document_id] = (model.documents[document_id][0], changes)
        return {"action": "patch", "id": document_id, "changes": changes}
    documents: list[JsonMessage] = []
    for document_id in sorted(set(ids)):
        vector, metadata = [rng.gauss(0, 1) for _ in range(6)], {"group": rng.randrange(3), "r": rng.random()}
        documents.append({"id": document_id, "vector": vector, "metadata": metadata})
        model.documents[document_id] = (vector, metadata)
    return {"action": "upsert", "documents": documents, "atomic": True}

"""A server that answers and pushes what a test says, for what a real gateway does too seldom or too late."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgpack
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


def item(document_id: str, score: float, **metadata: Any) -> dict[str, Any]:
    return {"id": document_id, "score": score, "metadata": metadata}


class Scripted:
    """A server that answers `watch` with `answer`: a list, or the code of an error; and `get` with `metadata`, by id."""

    def __init__(self) -> None:
        self.answer: list[dict[str, Any]] | str = [item("b", 0.8), item("a", 0.9)]
        self.metadata: dict[str, dict[str, Any]] = {}
        self.index_version = 1
        self.watched: list[dict[str, Any]] = []
        self.unwatched: list[str] = []
        self.held = asyncio.Event()
        self.held.set()
        self.changed = asyncio.Condition()
        self.connection: ServerConnection
        self.url = ""

    async def speak(self, connection: ServerConnection) -> None:
        self.connection = connection
        await connection.send(msgpack.packb({"type": "connected", "node": "scripted"}))
        with contextlib.suppress(ConnectionClosed):
            async for frame in connection:
                command = msgpack.unpackb(frame)
                reply = self.reply(command)
                async with self.changed:
                    self.changed.notify_all()
                await self.send(**reply, ref=command["ref"])

    def reply(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["action"] == "ping":
            return {"type": "pong", "timestamp": ""}
        if command["action"] == "unwatch":
            self.unwatched.append(command["watch_id"])
            return {"type": "unwatched", "watch_id": command["watch_id"]}
        if command["action"] == "get":
            return self._document(command["id"])
        assert command["action"] == "watch"
        self.watched.append(command)
        if isinstance(self.answer, str):
            return {"type": "error", "code": self.answer, "message": "no", "retryable": self.answer == "overloaded"}
        about = {"watch_id": f"w{len(self.watched)}", "collection": command["collection"], "exact": True}
        return {"type": "watching", **about, "index_version": self.index_version, "results": self.answer}

    def _document(self, document_id: str) -> dict[str, Any]:
        if document_id not in self.metadata:
            return {"type": "error", "code": "not_found", "message": "no", "retryable": False}
        about = {"collection": "m", "id": document_id, "version": 1, "updated_at": "2026-01-01T00:00:00+00:00"}
        return {"type": "document", **about, "metadata": self.metadata[document_id]}

    async def send(self, **message: Any) -> None:
        await self.held.wait()
        await self.connection.send(msgpack.packb(message))

    async def push(self, *, added: Any = (), changed: Any = (), removed: Any = (), watch_id: str | None = None) -> None:
        self.index_version += 1
        about = {"watch_id": watch_id or f"w{len(self.watched)}", "index_version": self.index_version}
        ranks = [[{**one, "rank": 1} for one in items] for items in (added, changed)]
        await self.send(type="watch_update", **about, added=ranks[0], changed=ranks[1], removed=list(removed))

    async def recommend(self, user_id: str, scores: dict[str, float]) -> None:
        about = {"watch_id": f"w{len(self.watched)}", "user_id": user_id, "timestamp": ""}
        await self.send(type="recommendation_update", **about, recommendations=[*scores], scores=[*scores.values()])

    async def until_watched(self, times: int) -> None:
        await self._until(self.watched, times)

    async def until_unwatched(self, times: int) -> None:
        await self._until(self.unwatched, times)

    async def _until(self, seen: list[Any], times: int) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: len(seen) >= times)


@contextlib.asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    server = Scripted()
    async with serve(server.speak, "127.0.0.1", 0) as listening:
        server.url = f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield server

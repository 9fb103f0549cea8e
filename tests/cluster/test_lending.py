"""What hosts and edges say to each other about the watches that hosts lend."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
import websockets

from gateway.errors import HotindexError, InvalidArgument, NotFound, Overloaded
from gateway.node import exchange, lending, relaying
from gateway.node.exchange import Greeting, Refused, UnwatchCall, WatchCall
from gateway.node.lending import Lending
from gateway.node.peers import PeerClient, PeerRefused
from gateway.node.watches import Opened
from gateway.protocol.messages import Watch
from tests.cluster.nodes import Nodes, ask
from tests.cluster.watched import eventually, watched
from tests.server.watchers import put


async def test_a_host_that_is_behind_lends_nothing(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it told would be older than what clients were told by another host."""
    monkeypatch.setattr(lending, "_REACH_S", 0.01)
    async with watched(nodes) as scene:
        host, epoch = scene.hosts[0], scene.hosts[0].node.hosted("m").epoch
        client = PeerClient(5.0)
        try:
            await (await client.watches(host.http, "m", Greeting(epoch, 30))).close()
            for greeting in (Greeting(epoch, 31), Greeting("another", 0)):
                with pytest.raises(PeerRefused) as refused:
                    await client.watches(host.http, "m", greeting)
                assert refused.value.failure.code == "overloaded"
            with pytest.raises(PeerRefused) as refused:
                await client.watches(host.http, "none", Greeting(epoch, 0))
            assert refused.value.failure.code == "not_found"
        finally:
            await client.close()


def watch_call(watch_id: str) -> bytes:
    """Return what an edge says that wants to be lent a watch."""
    vector = np.array([1, 0], np.float32).tobytes()
    return exchange.encode(WatchCall(watch_id, Watch(collection="m", vector=vector)))


async def test_a_host_lends_nothing_of_a_collection_that_has_taken_the_place(nodes: Nodes) -> None:
    """Its first answer would have been told as a difference from what was told of the other."""
    async with watched(nodes) as scene:
        host, epoch = scene.hosts[0], scene.hosts[0].node.hosted("m").epoch
        client = PeerClient(5.0)
        try:
            channel = await client.watches(host.http, "m", Greeting(epoch, 0))
            await ask(host, "/v1/collections/m", "DELETE")
            await ask(host, "/v1/collections/m", "PUT", {"dimension": 2})
            await channel.send(watch_call("1"))
            refused = exchange.decode_lent(await anext(channel.frames))
            assert isinstance(refused, Refused)
            assert (refused.watch_id, refused.failure.code) == ("1", "overloaded")
            await channel.close()
        finally:
            await client.close()


class Leaver:
    """A sink that gives a watch back the moment its first answer is written."""

    def __init__(self) -> None:
        self.lending: Lending | None = None
        self.leaving: asyncio.Task[None] | None = None

    def offer(self, data: bytes) -> bool:
        self.write(data)
        return True

    def write(self, data: bytes) -> None:
        if data and self.lending is not None:
            self.leaving = asyncio.create_task(self.lending.take(exchange.encode(UnwatchCall("1"))))

    async def drained(self) -> bool:
        return True

    def abandon(self, *, slow: bool = False) -> None:
        pass

    def end(self) -> None:
        pass


async def test_a_watch_given_back_as_its_first_answer_is_told_ends(nodes: Nodes) -> None:
    """It was lent for as long as the edge was connected."""
    async with watched(nodes) as scene:
        sink = Leaver()
        lending_ = scene.hosts[0].node.lend("m", sink)
        await lending_.take(exchange.encode(Greeting(scene.hosts[0].node.hosted("m").epoch, 0)))
        sink.lending = lending_
        await lending_.take(watch_call("1"))
        await eventually(lambda: sink.leaving is not None and sink.leaving.done())
        assert scene.lent == 0
        await lending_.end()


@pytest.mark.parametrize(
    "said", [b"rubbish", b"", msgspec.msgpack.encode({"type": "watch"}), msgspec.msgpack.encode(["greeting"])]
)
async def test_who_says_something_else_is_cut_off(nodes: Nodes, said: bytes) -> None:
    async with nodes.node("a") as (a, at_a):
        await at_a.reply(action="upsert", collection="m", id="x", vector=[1, 2])
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"{a.http}/v1/peer/m/watches") as connection,
        ):
            await connection.send_bytes(said)
            assert (await connection.receive()).type is aiohttp.WSMsgType.CLOSE
        assert (await at_a.reply(action="get", collection="m", id="x"))["type"] == "document"


async def test_what_a_host_refuses_later_is_asked_for_again_or_ends_the_connection(
    nodes: Nodes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relaying, "_RETRY_S", 0.01)
    async with watched(nodes) as scene:
        watch_id = await scene.client.watch(vector=[1, 0], k=3)
        hosted = scene.hosts[0].node.hosted("m")
        refusals: list[HotindexError] = [Overloaded("busy", retry_after_s=1.0), NotFound("gone", field="collection")]
        watch = hosted.watch

        async def refusing(*given: Any) -> Opened:
            if refusals:
                raise refusals.pop()
            return await watch(*given)

        monkeypatch.setattr(hosted, "watch", refusing)
        scene.relaying._want(scene.relayed)
        ack = await put(scene.socket, "new", 0.01)
        while "new" not in scene.client.ids(watch_id):
            await scene.client.update()
        await scene.exact(watch_id, ack, vector=[1, 0], k=3)
        assert not refusals
        refusals.append(InvalidArgument("it can't be", field="text"))
        scene.relaying._want(scene.relayed)
        with pytest.raises(websockets.ConnectionClosed):
            await scene.client.update()
        assert len(scene.relaying) == 0

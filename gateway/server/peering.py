"""What other nodes ask of this one over HTTP."""

from __future__ import annotations

import asyncio
import zlib

import structlog
from aiohttp import web

from gateway.errors import HotindexError, InvalidMessage
from gateway.faults import internal
from gateway.node import exchange, peers
from gateway.node.node import Node
from gateway.protocol.framing import RELAY_PING
from gateway.server import requests
from gateway.server.bodies import Bodies
from gateway.server.open_streams import OpenStreams
from gateway.server.streams import EventStream

log = structlog.get_logger(__name__)

_LENT_BYTES = 256 << 10
"""What may be on its way to a node whose clients watch here, before it is told no more."""


class Peering:
    """Answers other nodes' requests, of at most `most_bytes`."""

    def __init__(self, node: Node, bodies: Bodies, streams: OpenStreams, most_bytes: int) -> None:
        self._node = node
        self._bodies = bodies
        self._streams = streams
        self._most_bytes = most_bytes

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer another node."""
        name, call = request.match_info["collection"], request.match_info["call"]
        try:
            with self._bodies.holding(requests.body_bytes(request, self._most_bytes)):
                body = await requests.read(request.clone(client_max_size=self._most_bytes))
                if call == "relay":
                    return await self._relay(request, name, body)
                answering = asyncio.create_task(self._node.answer(name, call, body))
                if not (await asyncio.wait([answering], timeout=peers.ALIVE_S))[0]:
                    return await self._answer_late(request, answering)
                answer = answering.result()
        except HotindexError as error:
            return web.Response(status=peers.REFUSED, body=_failure(error), content_type=requests.MSGPACK_TYPE)
        headers = {peers.CHECKSUM: str(zlib.crc32(answer))}
        return web.Response(body=answer, content_type=requests.MSGPACK_TYPE, headers=headers)

    async def _answer_late(self, request: web.Request, answering: asyncio.Task[bytes]) -> web.StreamResponse:
        """Tell another node that this one is alive, until it has an answer."""
        response = web.StreamResponse(headers={peers.KEPT_ALIVE: "1"})
        try:
            await response.prepare(request)
            while not (await asyncio.wait([answering], timeout=peers.ALIVE_S))[0]:
                await response.write(RELAY_PING)
            await response.write(await _late(answering))
        except ConnectionError:
            await _late(answering)  # what was begun is done, whoever wanted to know
        return response

    async def _relay(self, request: web.Request, name: str, body: bytes) -> web.StreamResponse:
        """Send another node all that happens in a room."""
        assert request.transport is not None, "the node was there a moment ago"
        stream = EventStream(request.transport, RELAY_PING)
        response = web.StreamResponse()
        subscriber = self._node.relay(name, body, stream)()
        try:
            await self._streams.pump(request, response, stream)
        finally:
            self._node.unsubscribe(name, subscriber)
        return response

    async def lend(self, request: web.Request) -> web.StreamResponse:
        """Let another node's clients watch, for as long as it is connected."""
        assert request.transport is not None, "the node was there a moment ago"
        stream = EventStream(request.transport, RELAY_PING, _LENT_BYTES)
        socket = web.WebSocketResponse(compress=False, max_msg_size=self._most_bytes)
        await socket.prepare(request)
        lending = self._node.lend(request.match_info["collection"], stream)
        telling = [asyncio.create_task(_send(stream, socket)), asyncio.create_task(_say_alive(stream))]
        try:
            with self._streams.open(stream):
                async for message in socket:
                    await lending.take(message.data if message.type is web.WSMsgType.BINARY else b"")
        except InvalidMessage as error:
            log.warning("peer_refused", collection=request.match_info["collection"], reason=error.message)
        finally:
            stream.end()
            for task in telling:
                task.cancel()
            await asyncio.wait(telling)
            await lending.end()
        return socket


async def _send(stream: EventStream, socket: web.WebSocketResponse) -> None:
    """Send what comes until the stream ends; then close the socket."""
    await stream.pump(socket.send_bytes)
    await socket.close()


async def _say_alive(stream: EventStream) -> None:
    while True:
        await asyncio.sleep(peers.ALIVE_S)
        stream.offer(RELAY_PING)


async def _late(answering: asyncio.Task[bytes]) -> bytes:
    try:
        return peers.late(await answering, failed=False)
    except HotindexError as error:
        return peers.late(_failure(error), failed=True)
    except Exception as error:  # the answer has begun: there is no other way to tell
        return peers.late(_failure(internal(error)), failed=True)


def _failure(error: HotindexError) -> bytes:
    return exchange.encode(exchange.failure(error))

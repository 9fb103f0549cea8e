"""The HTTP edge: routes to the node, JSON or MessagePack in and out.

It is long because all that touches aiohttp's requests is here.
"""

from __future__ import annotations

import asyncio
import math
import re
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import msgspec
import structlog
from aiohttp import web

from gateway.engine.filter import Filter
from gateway.errors import (
    HotindexError,
    InvalidArgument,
    InvalidFilter,
    InvalidMessage,
    NotFound,
    RateLimited,
    TooLarge,
    UnknownAction,
)
from gateway.faults import internal
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.node import exchange, peers
from gateway.node.exchange import Info
from gateway.node.node import Node
from gateway.node.queries import CollectionSettings
from gateway.protocol import checks, messages
from gateway.protocol.codec import JSON, MSGPACK, Codec
from gateway.protocol.framing import RELAY_PING, SSE_PING
from gateway.protocol.session import error_message
from gateway.push.events import Events, Variant
from gateway.push.room import Subscriber
from gateway.server import replies
from gateway.server.bodies import Bodies
from gateway.server.ndjson import NDJSON_TYPE, load
from gateway.server.streams import CONTENT_TYPE as EVENT_STREAM_TYPE
from gateway.server.streams import EventStream

log = structlog.get_logger(__name__)

MAX_CHANGES = 10_000
_PEER_FACTOR = 4
_STREAM_BYTES = 256 << 10
"""What a body of NDJSON counts as: it is read as fast as it is committed, and never whole in memory."""
_BODY_S = 60.0
_LENT_BYTES = 256 << 10
"""What may be on its way to a node whose clients watch here, before it is told no more."""

_MSGPACK_TYPE = "application/msgpack"
_STATUS = {
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "too_large": 413,
    "rate_limited": 429,
    "overloaded": 503,
    "embedding_unavailable": 503,
    "storage_unavailable": 503,
    "internal": 500,
}
_COMMAND = web.RequestKey("command", str)
_STREAM_RETRY_S = 5.0
_STOP_S = 1.0
_T = TypeVar("_T")
_INTEGER = re.compile(r"-?[0-9]{1,30}")
_Default = TypeVar("_Default", int, None)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class CollectionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A collection as HTTP tells of it."""

    name: str
    dimension: int
    metric: str
    model: str | None
    m: int
    ef_construction: int
    ef_search: int
    hot_rows: int | None
    indexes: tuple[str, ...]
    text_fields: tuple[str, ...]
    separator: str
    epoch: str
    index_version: int
    documents: int


class _Vectors(msgspec.Struct, frozen=True):
    """The body of existing producers' upsert."""

    vectors: list[messages.DocumentInput]
    collection: str | None = None


class _PatchBody(msgspec.Struct, frozen=True):
    changes: messages.JsonObject
    content: str | None = None
    if_version: int | None = None
    event_id: str | None = None
    priority: Literal[0, 1, 2] = 0


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the net change. Go on from `index_version` while `more`."""

    collection: str
    epoch: str
    index_version: int
    recovered: bool
    more: bool
    changes: tuple[messages.Event, ...]


class HttpServer:
    """Serves the node between `start` and `stop`."""

    def __init__(
        self,
        node: Node,
        metrics: Metrics,
        message_bytes: int,
        max_streams: int,
        ping_interval_s: float,
        max_body_bytes: int = 256 << 20,
    ) -> None:
        self._node = node
        self._metrics = metrics
        self._max_streams = max_streams
        self._message_bytes = message_bytes
        self._ping_interval_s = ping_interval_s
        self._bodies = Bodies(max_body_bytes)
        self._streams: dict[EventStream, asyncio.Task[Any] | None] = {}
        self._keepalive: asyncio.Task[None] | None = None
        app = web.Application(middlewares=[self._counted, self._bounded], client_max_size=message_bytes)
        collection = "/v1/collections/{collection}"
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._render_metrics),
                web.get("/v1/collections", self._list),
                web.get(collection, self._describe),
                web.put(collection, self._create),
                web.delete(collection, self._drop),
                web.post(f"{collection}/documents", self._upsert),
                web.get(f"{collection}/documents/{{id:.+}}", self._get),
                web.patch(f"{collection}/documents/{{id:.+}}", self._patch),
                web.delete(f"{collection}/documents/{{id:.+}}", self._delete),
                web.post(f"{collection}/transaction", self._transact),
                web.post(f"{collection}/search", self._search),
                web.get(f"{collection}/changes", self._changes),
                web.get(f"{collection}/stream", self._stream),
                web.post(f"{collection}/snapshot", self._snapshot),
                web.get(f"{collection}/digest", self._digest),
                web.get("/v1/nodes", self._nodes),
                web.get("/v1/stats", self._stats),
                web.post(f"{peers.PATH}/{{collection}}/{{call}}", self._answer_peer),
                web.get(f"{peers.PATH}/{{collection}}/watches", self._lend),
                web.post("/v1/upsert", self._upsert_vectors),
                web.post("/v1/delete", self._delete_ids),
                web.get("/v1/documents/{id:.+}", self._metadata),
                web.post("/v1/users/{user_id}/embedding", self._put_user),
                web.get("/v1/users/{user_id}", self._user),
                web.delete("/v1/users/{user_id}", self._forget_user),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=5.0)

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port bound. Raises OSError where that isn't possible."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=1024).start()
        self._keepalive = asyncio.create_task(self._keep_alive(), name="keepalive of streams")
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Answer the requests under way, end the streams, then close."""
        if self._keepalive is not None:
            self._keepalive.cancel()
        for stream in self._streams:
            stream.end()
        if answering := [task for task in self._streams.values() if task is not None]:
            await asyncio.wait(answering, timeout=_STOP_S)
        for stream in self._streams:
            stream.abandon()
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        faults = await self._node.faults()
        if faults:
            return web.Response(status=503, text="".join(f"{fault}\n" for fault in faults))
        return web.Response(text="ready\n")

    async def _render_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _list(self, request: web.Request) -> web.Response:
        return _respond(request, {"collections": [_info(info) for info in await self._node.infos()]})

    async def _describe(self, request: web.Request) -> web.Response:
        served = await self._node.served(request.match_info["collection"])
        return _respond(request, _info(await served.info()))

    async def _create(self, request: web.Request) -> web.Response:
        settings = await _body(request, CollectionSettings) if request.can_read_body else CollectionSettings()
        served, made = await self._node.create(request.match_info["collection"], settings)
        return _respond(request, _info(await served.info()), status=201 if made else 200)

    async def _drop(self, request: web.Request) -> web.Response:
        name = request.match_info["collection"]
        await self._node.drop(name)
        return _respond(request, {"collection": name, "status": "dropped"})

    async def _digest(self, request: web.Request) -> web.Response:
        hosted = self._node.hosted(request.match_info["collection"])
        index_version, digest = await hosted.read(hosted.collection.digest)
        return _respond(request, {"collection": hosted.name, "index_version": index_version, "digest": digest})

    async def _nodes(self, request: web.Request) -> web.Response:
        return _respond(request, {"nodes": await self._node.cluster.nodes()})

    async def _stats(self, request: web.Request) -> web.Response:
        node = self._node
        figures = {"models": node.models(), "collections": list(node.states()), "relayed": list(node.relays())}
        return _respond(request, {"node": node.name, **figures})

    async def _answer_peer(self, request: web.Request) -> web.StreamResponse:
        """Answer another node."""
        name, call = request.match_info["collection"], request.match_info["call"]
        # What a client sends may be longer in the form in which nodes pass it on.
        most = _PEER_FACTOR * self._message_bytes
        try:
            with self._bodies.holding(_body_bytes(request, most)):
                body = await _read(request.clone(client_max_size=most))
                if call == "relay":
                    return await self._relay(request, name, body)
                answering = asyncio.create_task(self._node.answer(name, call, body))
                if not (await asyncio.wait([answering], timeout=peers.ALIVE_S))[0]:
                    return await self._answer_late(request, answering)
                answer = answering.result()
        except HotindexError as error:
            return web.Response(status=peers.REFUSED, body=_failure(error), content_type=_MSGPACK_TYPE)
        headers = {peers.CHECKSUM: str(zlib.crc32(answer))}
        return web.Response(body=answer, content_type=_MSGPACK_TYPE, headers=headers)

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
        await self._pump(request, response, stream, name, self._node.relay(name, body, stream)())
        return response

    async def _lend(self, request: web.Request) -> web.StreamResponse:
        """Let another node's clients watch, for as long as it is connected."""
        assert request.transport is not None, "the node was there a moment ago"
        stream = EventStream(request.transport, RELAY_PING, _LENT_BYTES)
        socket = web.WebSocketResponse(compress=False, max_msg_size=_PEER_FACTOR * self._message_bytes)
        await socket.prepare(request)
        lending = self._node.lend(request.match_info["collection"], stream)
        telling = [asyncio.create_task(_send(stream, socket)), asyncio.create_task(_say_alive(stream))]
        self._streams[stream] = asyncio.current_task()
        try:
            async for message in socket:
                await lending.take(message.data if message.type is web.WSMsgType.BINARY else b"")
        except InvalidMessage as error:
            log.warning("peer_refused", collection=request.match_info["collection"], reason=error.message)
        finally:
            del self._streams[stream]
            stream.end()
            for task in telling:
                task.cancel()
            await asyncio.wait(telling)
            await lending.end()
        return socket

    async def _upsert(self, request: web.Request) -> web.Response:
        name = request.match_info["collection"]
        if self._is_ndjson(request):
            return _respond(request, await load(self._node, name, request.content.iter_any()))
        command = msgspec.structs.replace(await _body(request, messages.Upsert), collection=name)
        return await self._submit(request, command)

    def _is_ndjson(self, request: web.Request) -> bool:
        return request.match_info.handler == self._upsert and request.content_type == NDJSON_TYPE

    async def _transact(self, request: web.Request) -> web.Response:
        command = msgspec.structs.replace(
            await _body(request, messages.Transaction), collection=request.match_info["collection"]
        )
        return await self._submit(request, command)

    async def _patch(self, request: web.Request) -> web.Response:
        body = await _body(request, _PatchBody)
        command = messages.Patch(
            collection=request.match_info["collection"], id=request.match_info["id"], **msgspec.structs.asdict(body)
        )
        return await self._submit(request, command)

    async def _delete(self, request: web.Request) -> web.Response:
        command = messages.Delete(
            collection=request.match_info["collection"],
            id=request.match_info["id"],
            event_id=request.query.get("event_id"),
        )
        return await self._submit(request, command)

    async def _upsert_vectors(self, request: web.Request) -> web.Response:
        body = await _body(request, _Vectors)
        command = messages.Upsert(collection=_named(request, body.collection), documents=body.vectors)
        return await self._submit(request, command)

    async def _delete_ids(self, request: web.Request) -> web.Response:
        body = await _body(request, messages.Delete)
        command = msgspec.structs.replace(body, collection=_named(request, body.collection))
        return await self._submit(request, command)

    async def _submit(self, request: web.Request, command: messages.Write) -> web.Response:
        request[_COMMAND] = messages.name_of(command)
        ticket = await self._node.submit(command, len(await request.read()), wait=False)
        return _respond(request, replies.ack(ticket.collection, await ticket.done()))

    async def _get(self, request: web.Request) -> web.Response:
        request[_COMMAND] = "get"
        include = _include(request)
        found = await self._node.get(
            messages.Get(collection=request.match_info["collection"], id=request.match_info["id"], include=include)
        )
        return _respond(request, replies.document(*found, include, _accepted(request)))

    async def _metadata(self, request: web.Request) -> web.Response:
        request[_COMMAND] = "get"
        command = messages.Get(id=request.match_info["id"], collection=request.query.get("collection"))
        _, document, _ = await self._node.get(command)
        return _respond(request, _accepted(request).metadata(document.metadata))

    async def _search(self, request: web.Request) -> web.Response:
        request[_COMMAND] = "search"
        command = msgspec.structs.replace(
            await _body(request, messages.Search), collection=request.match_info["collection"]
        )
        found = await self._node.search(command)
        return _respond(request, replies.results(*found, command.include, _accepted(request)))

    async def _put_user(self, request: web.Request) -> web.Response:
        request[_COMMAND] = "put_user"
        command = msgspec.structs.replace(await _body(request, messages.PutUser), user_id=request.match_info["user_id"])
        served = await self._node.served(request.query.get("collection", command.collection))
        return _respond(request, replies.ack(served.name, await served.put_user(command)))

    async def _user(self, request: web.Request) -> web.Response:
        request[_COMMAND] = "user"
        served = await self._node.served(request.query.get("collection"))
        return _respond(request, await served.user(request.match_info["user_id"]))

    async def _forget_user(self, request: web.Request) -> web.Response:
        request[_COMMAND] = "forget_user"
        served = await self._node.served(request.query.get("collection"))
        return _respond(request, replies.ack(served.name, await served.forget_user(request.match_info["user_id"])))

    async def _changes(self, request: web.Request) -> web.Response:
        since = _integer(request, "since", 0, 0, 2**63 - 1)
        limit = _integer(request, "limit", 1000, 1, MAX_CHANGES)
        include = _include(request)
        source = _filter(request)
        where = Filter(source) if source else None
        served, page = await self._node.changes(
            request.match_info["collection"], since, request.query.get("epoch"), limit, with_vectors="vector" in include
        )
        variant = Variant(
            served.name, _accepted(request), where, content="content" in include, vector="vector" in include
        )
        answer = Changes(
            collection=served.name,
            epoch=served.epoch,
            index_version=page.through if page else served.room.head,
            recovered=page is not None,
            more=page.more if page else False,
            changes=Events(page.changes).messages_for(variant) if page else (),
        )
        return _respond(request, answer)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Answer with the room's events until the client or the collection is gone."""
        request[_COMMAND] = "subscribe"
        since = _integer(request, "since", None, 0, 2**63 - 1)
        if last := request.headers.get("Last-Event-ID"):
            since = _parsed(last, "Last-Event-ID", 0, 2**63 - 1)
        command = messages.Subscribe(
            collection=request.match_info["collection"],
            since=since,
            epoch=request.query.get("epoch"),
            filter=_filter(request),
            include=_include(request),
            caught_up=request.query.get("caught_up") in ("1", "true"),
        )
        if len(self._streams) >= self._max_streams:
            raise RateLimited(f"more than {self._max_streams} streams", retry_after_s=_STREAM_RETRY_S)
        assert request.transport is not None, "the client was there a moment ago"
        stream = EventStream(request.transport, SSE_PING)
        membership = await self._node.subscribe(command, JSON, stream, sse=True)
        if since is not None and not membership.recovered:
            # A browser can't ask again by itself: it is told to start over, and gets everything.
            beginning = msgspec.structs.replace(command, since=0, epoch=None)
            join = (await self._node.subscribe(beginning, JSON, stream, sse=True)).join
        else:
            join = membership.join
        response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        response.content_type = EVENT_STREAM_TYPE
        # Who breaks off before the reset that follows must begin anew.
        position = membership.index_version if since is None else since if membership.recovered else 0
        stream.write(membership.variant.control(membership.reply(), position))
        await self._pump(request, response, stream, membership.collection, join())
        return response

    async def _pump(
        self,
        request: web.Request,
        response: web.StreamResponse,
        stream: EventStream,
        collection: str,
        subscriber: Subscriber,
    ) -> None:
        """Send what a room has for a subscriber until one of them, or the client, is gone."""
        self._streams[stream] = asyncio.current_task()
        try:
            await response.prepare(request)
            await stream.pump(response.write)
        except ConnectionError:
            pass  # gone before the answer
        finally:
            del self._streams[stream]
            self._node.unsubscribe(collection, subscriber)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._ping_interval_s)
            for stream in list(self._streams):
                stream.keep_alive()

    async def _snapshot(self, request: web.Request) -> web.Response:
        name = request.match_info["collection"]
        return _respond(request, {"collection": name, "index_version": await self._node.snapshot(name)})

    @web.middleware
    async def _counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the commands that requests carry, with those of WebSockets."""
        outcome = "ok"
        try:
            return await _answered(request, handler)
        except _Refused as refused:
            outcome = refused.error.code
            return _refuse(request, refused.error, refused.status)
        finally:
            if command := request.get(_COMMAND):
                self._metrics.count_command(command, outcome)

    @web.middleware
    async def _bounded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a request whose body there is no room for, before that is read."""
        if request.match_info.handler == self._answer_peer:
            return await handler(request)  # another node is refused in its own terms
        size_bytes = _STREAM_BYTES if self._is_ndjson(request) else _body_bytes(request, self._message_bytes)
        with self._bodies.holding(size_bytes):
            return await handler(request)


class _Refused(Exception):
    """A request that is answered with the contract's error object."""

    def __init__(self, error: HotindexError, status: int | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.status = status


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer, or raise a _Refused for whatever is wrong."""
    try:
        return await handler(request)
    except HotindexError as error:
        raise _Refused(error) from error
    except web.HTTPRequestEntityTooLarge as error:
        raise _Refused(TooLarge(error.text or "the body is over the limit")) from error
    except web.HTTPNotFound as error:
        raise _Refused(NotFound(f"no route {request.path!r}")) from error
    except web.HTTPMethodNotAllowed as error:
        raise _Refused(UnknownAction(f"{error.method} is not allowed on {request.path!r}"), 405) from error
    except web.RequestPayloadError as error:
        raise _Refused(InvalidMessage("the body broke off")) from error
    except ConnectionError as error:
        # The client is gone; raised, aiohttp would log it as a fault.
        raise _Refused(InvalidMessage("the connection broke off")) from error
    except asyncio.CancelledError:
        raise
    except Exception as error:  # one request's fault must not be the client's riddle
        raise _Refused(internal(error, path=request.path)) from error


def _refuse(request: web.Request, error: HotindexError, status: int | None = None) -> web.Response:
    message = error_message(error)
    response = _respond(request, message, status=status or _STATUS.get(error.code, 400))
    if message.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(message.retry_after_s)))
    return response


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


def _accepted(request: web.Request) -> Codec:
    return MSGPACK if _MSGPACK_TYPE in request.headers.get("Accept", "") else JSON


def _respond(request: web.Request, body: object, status: int = 200) -> web.Response:
    codec = _accepted(request)
    content_type = _MSGPACK_TYPE if codec is MSGPACK else "application/json"
    return web.Response(status=status, body=codec.encode(body), content_type=content_type)


async def _body(request: web.Request, kind: type[_T]) -> _T:
    codec = MSGPACK if request.content_type == _MSGPACK_TYPE else JSON
    body: _T = codec.decode(await _read(request), kind)
    return body


async def _read(request: web.Request) -> bytes:
    """Return the body, which must not take for ever: it is counted until it has come."""
    try:
        async with asyncio.timeout(_BODY_S):
            return await request.read()
    except TimeoutError:
        raise InvalidMessage(f"the body didn't come whole within {_BODY_S:g} s") from None


def _body_bytes(request: web.Request, most: int) -> int:
    """Return what a body takes, or may take. Raises TooLarge."""
    if not request.can_read_body:
        return 0
    length = request.content_length
    if length is not None and length > most:
        raise TooLarge(f"the body has {length} bytes; the limit is {most}")
    compressed = request.headers.get("Content-Encoding", "identity").lower() != "identity"
    return most if length is None or compressed else length


def _named(request: web.Request, in_body: str | None) -> str | None:
    """Return the collection that the body or the query names."""
    in_query = request.query.get("collection")
    if in_body is not None and in_query not in (None, in_body):
        raise InvalidArgument(
            f"collection is {checks.show(in_body)} in the body and {checks.show(in_query)} in the query",
            field="collection",
        )
    return in_query if in_body is None else in_body


def _include(request: web.Request) -> tuple[messages.Include, ...]:
    names = [name for name in request.query.get("include", "").split(",") if name]
    try:
        return msgspec.convert(names, tuple[messages.Include, ...])
    except msgspec.ValidationError:
        raise InvalidArgument(
            f"include is {','.join(names)!r}; it may have content and vector", field="include"
        ) from None


def _filter(request: web.Request) -> messages.JsonObject | None:
    text = request.query.get("filter")
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=messages.JsonObject)
    except (msgspec.DecodeError, UnicodeError):
        raise InvalidFilter(f"filter is {checks.show(text)}; it must be a JSON object", field="filter") from None


def _integer(request: web.Request, name: str, default: _Default, low: int, high: int) -> int | _Default:
    text = request.query.get(name)
    return default if text is None else _parsed(text, name, low, high)


def _parsed(text: str, name: str, low: int, high: int) -> int:
    if not _INTEGER.fullmatch(text):
        raise InvalidMessage(f"{name} is {checks.show(text)}, not an integer", field=name)
    value = int(text)
    checks.between(value, low, high, name)
    return value


def _info(info: Info) -> CollectionInfo:
    spec = info.spec
    return CollectionInfo(
        name=spec.name,
        dimension=spec.dimension,
        metric=spec.metric,
        model=spec.model,
        m=spec.m,
        ef_construction=spec.ef_construction,
        ef_search=spec.ef_search,
        hot_rows=spec.hot_rows,
        indexes=spec.indexes,
        text_fields=spec.text_fields,
        separator=spec.separator,
        epoch=info.epoch,
        index_version=info.index_version,
        documents=info.documents,
    )

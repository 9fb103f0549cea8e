"""The HTTP edge: routes to the node, JSON or MessagePack in and out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
import structlog
from aiohttp import web

from gateway.engine.filter import Filter
from gateway.errors import (
    HotindexError,
    InvalidMessage,
    NotFound,
    RateLimited,
    TooLarge,
    UnknownAction,
)
from gateway.faults import internal
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.node import peers
from gateway.node.exchange import Info
from gateway.node.node import Node
from gateway.node.queries import CollectionSettings
from gateway.protocol import messages
from gateway.protocol.codec import JSON
from gateway.protocol.framing import SSE_PING
from gateway.protocol.session import error_message
from gateway.push.events import Events, Variant
from gateway.server import replies, requests
from gateway.server.bodies import Bodies
from gateway.server.ndjson import NDJSON_TYPE, load
from gateway.server.open_streams import OpenStreams
from gateway.server.peering import Peering
from gateway.server.streams import CONTENT_TYPE as EVENT_STREAM_TYPE
from gateway.server.streams import EventStream

log = structlog.get_logger(__name__)

MAX_CHANGES = 10_000
_PEER_FACTOR = 4
_STREAM_BYTES = 256 << 10
"""What a body of NDJSON counts as: it is read as fast as it is committed, and never whole in memory."""

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
        self._bodies = Bodies(max_body_bytes)
        self._streams = OpenStreams(ping_interval_s)
        # What a client sends may be longer in the form in which nodes pass it on.
        self._peering = Peering(node, self._bodies, self._streams, _PEER_FACTOR * message_bytes)
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
                web.post(f"{peers.PATH}/{{collection}}/{{call}}", self._peering.answer),
                web.get(f"{peers.PATH}/{{collection}}/watches", self._peering.lend),
                web.post("/v1/upsert", self._upsert_vectors),
                web.post("/v1/delete", self._delete_ids),
                web.get("/v1/documents/{id:.+}", self._metadata),
                web.post("/v1/users/{user_id:.+}/embedding", self._put_user),
                web.get("/v1/users/{user_id:.+}", self._user),
                web.delete("/v1/users/{user_id:.+}", self._forget_user),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=5.0)

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port bound. Raises OSError where that isn't possible."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=1024).start()
        self._streams.start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Answer the requests under way, end the streams, then close."""
        await self._streams.stop()
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
        return requests.respond(request, {"collections": [_info(info) for info in await self._node.infos()]})

    async def _describe(self, request: web.Request) -> web.Response:
        served = await self._node.served(request.match_info["collection"])
        return requests.respond(request, _info(await served.info()))

    async def _create(self, request: web.Request) -> web.Response:
        settings = await requests.body(request, CollectionSettings) if request.can_read_body else CollectionSettings()
        served, made = await self._node.create(request.match_info["collection"], settings)
        return requests.respond(request, _info(await served.info()), status=201 if made else 200)

    async def _drop(self, request: web.Request) -> web.Response:
        name = request.match_info["collection"]
        await self._node.drop(name)
        return requests.respond(request, {"collection": name, "status": "dropped"})

    async def _digest(self, request: web.Request) -> web.Response:
        hosted = self._node.hosted(request.match_info["collection"])
        index_version, digest = await hosted.read(hosted.collection.digest)
        return requests.respond(request, {"collection": hosted.name, "index_version": index_version, "digest": digest})

    async def _nodes(self, request: web.Request) -> web.Response:
        return requests.respond(request, {"nodes": await self._node.cluster.nodes()})

    async def _stats(self, request: web.Request) -> web.Response:
        node = self._node
        figures = {"models": node.models(), "collections": list(node.states()), "relayed": list(node.relays())}
        return requests.respond(request, {"node": node.name, **figures})

    async def _upsert(self, request: web.Request) -> web.Response:
        name = request.match_info["collection"]
        if self._is_ndjson(request):
            return requests.respond(request, await load(self._node, name, request.content.iter_any()))
        command = msgspec.structs.replace(await requests.body(request, messages.Upsert), collection=name)
        return await self._submit(request, command)

    def _is_ndjson(self, request: web.Request) -> bool:
        return request.match_info.handler == self._upsert and request.content_type == NDJSON_TYPE

    async def _transact(self, request: web.Request) -> web.Response:
        command = msgspec.structs.replace(
            await requests.body(request, messages.Transaction), collection=request.match_info["collection"]
        )
        return await self._submit(request, command)

    async def _patch(self, request: web.Request) -> web.Response:
        body = await requests.body(request, _PatchBody)
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
        body = await requests.body(request, _Vectors)
        command = messages.Upsert(collection=requests.named(request, body.collection), documents=body.vectors)
        return await self._submit(request, command)

    async def _delete_ids(self, request: web.Request) -> web.Response:
        body = await requests.body(request, messages.Delete)
        command = msgspec.structs.replace(body, collection=requests.named(request, body.collection))
        return await self._submit(request, command)

    async def _submit(self, request: web.Request, command: messages.Write) -> web.Response:
        request[_COMMAND] = messages.name_of(command)
        ticket = await self._node.submit(command, len(await request.read()), wait=False)
        return requests.respond(request, replies.ack(ticket.collection, await ticket.done()))

    async def _get(self, request: web.Request) -> web.Response:
        request[_COMMAND] = "get"
        include = requests.include(request)
        found = await self._node.get(
            messages.Get(collection=request.match_info["collection"], id=request.match_info["id"], include=include)
        )
        return requests.respond(request, replies.document(*found, include, requests.accepted(request)))

    async def _metadata(self, request: web.Request) -> web.Response:
        request[_COMMAND] = "get"
        command = messages.Get(id=request.match_info["id"], collection=request.query.get("collection"))
        _, document, _ = await self._node.get(command)
        return requests.respond(request, requests.accepted(request).metadata(document.metadata))

    async def _search(self, request: web.Request) -> web.Response:
        request[_COMMAND] = "search"
        command = msgspec.structs.replace(
            await requests.body(request, messages.Search), collection=request.match_info["collection"]
        )
        found = await self._node.search(command)
        return requests.respond(request, replies.results(*found, command.include, requests.accepted(request)))

    async def _put_user(self, request: web.Request) -> web.Response:
        request[_COMMAND] = "put_user"
        command = msgspec.structs.replace(
            await requests.body(request, messages.PutUser), user_id=request.match_info["user_id"]
        )
        served = await self._node.served(request.query.get("collection", command.collection))
        return requests.respond(request, replies.ack(served.name, await served.put_user(command)))

    async def _user(self, request: web.Request) -> web.Response:
        request[_COMMAND] = "user"
        served = await self._node.served(request.query.get("collection"))
        return requests.respond(request, await served.user(request.match_info["user_id"]))

    async def _forget_user(self, request: web.Request) -> web.Response:
        request[_COMMAND] = "forget_user"
        served = await self._node.served(request.query.get("collection"))
        return requests.respond(
            request, replies.ack(served.name, await served.forget_user(request.match_info["user_id"]))
        )

    async def _changes(self, request: web.Request) -> web.Response:
        since = requests.integer(request, "since", 0, 0, 2**63 - 1)
        limit = requests.integer(request, "limit", 1000, 1, MAX_CHANGES)
        include = requests.include(request)
        source = requests.where(request)
        where = Filter(source) if source else None
        served, page = await self._node.changes(
            request.match_info["collection"], since, request.query.get("epoch"), limit, with_vectors="vector" in include
        )
        variant = Variant(
            served.name, requests.accepted(request), where, content="content" in include, vector="vector" in include
        )
        answer = Changes(
            collection=served.name,
            epoch=served.epoch,
            index_version=page.through if page else served.room.head,
            recovered=page is not None,
            more=page.more if page else False,
            changes=Events(page.changes).messages_for(variant) if page else (),
        )
        return requests.respond(request, answer)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Answer with the room's events until the client or the collection is gone."""
        request[_COMMAND] = "subscribe"
        since = requests.integer(request, "since", None, 0, 2**63 - 1)
        if last := request.headers.get("Last-Event-ID"):
            since = requests.parsed(last, "Last-Event-ID", 0, 2**63 - 1)
        command = messages.Subscribe(
            collection=request.match_info["collection"],
            since=since,
            epoch=request.query.get("epoch"),
            filter=requests.where(request),
            include=requests.include(request),
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
        subscriber = join()
        try:
            await self._streams.pump(request, response, stream)
        finally:
            self._node.unsubscribe(membership.collection, subscriber)
        return response

    async def _snapshot(self, request: web.Request) -> web.Response:
        name = request.match_info["collection"]
        return requests.respond(request, {"collection": name, "index_version": await self._node.snapshot(name)})

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
        if request.match_info.handler == self._peering.answer:
            return await handler(request)  # another node is refused in its own terms
        size_bytes = _STREAM_BYTES if self._is_ndjson(request) else requests.body_bytes(request, self._message_bytes)
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
    response = requests.respond(request, message, status=status or _STATUS.get(error.code, 400))
    if message.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(message.retry_after_s)))
    return response


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

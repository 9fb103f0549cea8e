"""The gateway put together: the only place that knows all parts, and that reads the settings."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import os
import random
import resource
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import uvloop

from gateway import __version__, logs
from gateway.bus.link import Link
from gateway.bus.shared import SharedOptions
from gateway.embed import presets
from gateway.embed.catalog import Models, Priced
from gateway.embed.local import LocalModel
from gateway.embed.pipeline import Pipeline
from gateway.embed.service import Service
from gateway.engine.checksums import Checksum, checksum
from gateway.errors import InvalidArgument, StartupError
from gateway.ingest.queue import Bounds
from gateway.metrics import Metrics
from gateway.node.alone import Cluster, SingleNode
from gateway.node.cluster import ClusterOptions, SharedCluster
from gateway.node.datadir import locked
from gateway.node.node import Node
from gateway.node.peers import PeerClient
from gateway.node.upkeep import HotLimits, Timing
from gateway.node.values import Options
from gateway.protocol import checks
from gateway.protocol.session import Limits
from gateway.push.room import RoomLimits
from gateway.server.http import HttpServer
from gateway.server.websocket import WebSocketServer
from gateway.settings import Settings
from gateway.users.actions import Scale, Vocabulary, vocabulary
from gateway.users.profile import Memory

log = structlog.get_logger(__name__)

_PEER_TIMEOUT_S = 30.0
_M_ARENA_MAX, _ARENAS = -8, 2
_EMBEDDING_END_S = 3.0
"""How long a gateway that stops waits for models."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that runs: where it listens, and its node."""

    ws: str
    http: str
    node: Node


def now_us() -> int:
    """Return microseconds since the epoch."""
    return time.time_ns() // 1000


@asynccontextmanager
async def running(settings: Settings, checksum: Checksum = checksum) -> AsyncIterator[Gateway]:
    """Run a gateway inside the context; leaving it ends it cleanly. Raises StartupError.

    `checksum` gives those of snapshots.
    """
    try:
        checks.collection_name(settings.default_collection)
    except InvalidArgument as error:
        raise StartupError(f"setting default_collection: {error.message}") from None
    metrics = Metrics()
    services = presets.services({name: model.given() for name, model in settings.models.items()})
    models = _models(settings, services)
    limits = Limits(
        message_bytes=settings.max_message_bytes,
        in_flight=settings.max_in_flight,
        rooms=settings.max_rooms,
        watches=settings.max_watches,
        commands_per_s=settings.max_commands_per_s,
    )
    with locked(settings.data_dir) as directory:
        cluster = _cluster(settings, metrics)
        node = Node(directory, models, _options(settings), metrics, now_us, checksum, cluster)
        websockets = WebSocketServer(node, metrics, limits, settings.max_connections, settings.ping_interval_s, now_us)
        http = HttpServer(
            node,
            metrics,
            settings.max_message_bytes,
            settings.max_connections,
            settings.ping_interval_s,
            settings.max_http_bytes,
        )
        try:
            for service in services.values():
                await service.check()
            await node.start()
            ws_port = await _bind(websockets, settings.host, settings.ws_port)
            try:
                http_port = await _bind(http, settings.host, settings.http_port)
                try:
                    ws, http_ = _addresses(settings.host, ws_port, http_port)
                    await cluster.start(node, *_addresses(settings.advertise or settings.host, ws_port, http_port))
                    try:
                        yield Gateway(ws, http_, node)
                    finally:
                        models.end_within(_EMBEDDING_END_S)
                        await cluster.leave()
                finally:
                    await http.stop()
            finally:
                await websockets.stop()
        finally:
            await node.stop()
            await cluster.close()


def _cluster(settings: Settings, metrics: Metrics) -> Cluster:
    if not settings.redis_url:
        return SingleNode()
    origin = f"{settings.node}-{secrets.token_hex(8)}"
    shared = SharedOptions(origin, settings.write_wait_s, settings.settle_s, settings.stream_changes)
    options = ClusterOptions(settings.node, shared, collections=_hosted(settings))
    link = Link(settings.redis_url, timeout_s=settings.redis_timeout_s)
    metrics.watch_redis(lambda: link.commands_sent)
    return SharedCluster(link, PeerClient(_PEER_TIMEOUT_S), options, random.random)


def _models(settings: Settings, services: Mapping[str, Service]) -> Models:
    priced = [Priced(Pipeline(one), one.options.price_per_million_tokens) for one in services.values()]
    default = None if settings.default_model == presets.NONE else settings.default_model
    return Models([Priced(Pipeline(LocalModel())), *priced], default)


def _hosted(settings: Settings) -> frozenset[str] | None:
    """Return the collections to host; None for all."""
    if not settings.collections:
        return None
    names = frozenset(name.strip() for name in settings.collections.split(","))
    for name in names:
        try:
            checks.collection_name(name)
        except InvalidArgument as error:
            raise StartupError(f"setting collections: {error.message}") from None
    return names


def _options(settings: Settings) -> Options:
    return Options(
        node=settings.node,
        default_collection=settings.default_collection,
        timing=Timing(settings.snapshot_interval_s, settings.tombstone_retention_s),
        idempotency_window_s=settings.idempotency_window_s,
        embedding_cache_bytes=settings.embedding_cache_bytes,
        read_wait_s=settings.read_wait_s,
        cores=os.cpu_count() or 1,
        hot=HotLimits(settings.hot_target, settings.hot_limit),
        bounds=Bounds(settings.queue_documents, settings.queue_bytes),
        room=RoomLimits(settings.room_log_bytes, settings.max_lag_s),
        writes_per_s=settings.max_writes_per_s,
        vocabulary=_vocabulary(settings),
        memory=Memory(settings.profile_tau_s, settings.seen_for_s),
    )


def _vocabulary(settings: Settings) -> Vocabulary:
    try:
        return vocabulary(settings.action_weights, Scale(*settings.rating_scale))
    except ValueError as error:
        raise StartupError(f"setting action_weights: {error}") from None


def _addresses(host: str, ws_port: int, http_port: int) -> tuple[str, str]:
    host = f"[{host}]" if ":" in host else host
    return f"ws://{host}:{ws_port}", f"http://{host}:{http_port}"


async def _bind(server: WebSocketServer | HttpServer, host: str, port: int) -> int:
    try:
        return await server.start(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartupError(f"port {port} on {host} is in use") from None
        raise StartupError(f"can't listen on {host}:{port}: {error.strerror or error}") from None


def serve(settings: Settings, checksum: Checksum) -> None:
    """Run the gateway until SIGTERM or SIGINT; `checksum` gives those of snapshots. Raises StartupError."""
    logs.configure(settings.log_level, settings.log_format)
    tune_interpreter()
    _allow_many_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, checksum))


def tune_interpreter() -> None:
    """Trade a little throughput for latency, and for memory.

    A thread that comes back from a commit or a search asks for the GIL after 1 ms instead of 5. What was made at start is
    left out of garbage collections, and those are rarer: nearly all that a gateway makes is freed by its reference count.
    With an arena of its own for each thread, the allocator kept 30 to 60 MiB of freed memory after 100,000 writes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
    sys.setswitchinterval(0.001)
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)


def _allow_many_files() -> None:
    """Take as many descriptors as the system allows: a connection needs one, a collection up to ten."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(settings: Settings, checksum: Checksum) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings, checksum) as gateway:
        log.info("serving", version=__version__, ws=gateway.ws, http=gateway.http, data=str(settings.data_dir))
        print(f"ready {gateway.ws} {gateway.http}", flush=True)
        await stop.wait()
        log.info("stopping")
    log.info("stopped")

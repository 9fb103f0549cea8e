"""One connection to one Redis server, and what can go wrong on it. The only module that imports redis-py.

Of redis-py it takes the connection alone: its handshake, TLS and parser. Its clients retry what was lost on the way by
themselves, the cluster's after having closed connections that others wait on; here the caller has to know.
"""

from __future__ import annotations

import math
import ssl
from typing import Any, Protocol, TypeAlias, cast

from redis import exceptions as redis_errors
from redis.asyncio.connection import Connection, RedisSSLContext, SSLConnection
from redis.crc import key_slot

from gateway.bus.address import Address, Credentials, Node
from gateway.errors import StartupError

Value: TypeAlias = bytes | str | int
CLIENT_NAME = "hotindex"

_WORTH_A_RETRY = frozenset(
    {
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOREPLICAS",
        "NOSCRIPT",
        "OOM",
        "READONLY",
        "TRYAGAIN",
    }
)
_FAILURES = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.ResponseError,
    redis_errors.InvalidResponse,
    OSError,
)
_REFUSALS = (redis_errors.ResponseError, redis_errors.AuthenticationError, redis_errors.AuthorizationError)


class LinkLost(Exception):
    """Redis can't be reached, didn't answer in time, or can't serve just now: worth trying again.

    `in_doubt` tells that the command was sent and no answer came: it may have been executed, or may yet be.
    """

    def __init__(self, message: str, *, in_doubt: bool = False) -> None:
        super().__init__(message)
        self.in_doubt = in_doubt


class LinkRefused(Exception):
    """Redis answered with an error that a repetition won't change, which the message begins with after the command."""


class ScriptMissing(LinkLost):
    """The server doesn't have the script."""


class Redirected(LinkLost):
    """Another node has the slot. The command was not executed. `asking`: this once only."""

    def __init__(self, message: str, slot: int, node: Node, *, asking: bool) -> None:
        super().__init__(message)
        self.slot = slot
        self.node = node
        self.asking = asking


class _Connection(Protocol):
    """What is used of redis-py's, which is mostly untyped."""

    @property
    def is_connected(self) -> bool: ...
    async def connect(self) -> None: ...
    async def disconnect(self, nowait: bool = ...) -> None: ...
    async def send_command(self, *args: Value) -> None: ...
    async def read_response(self, disable_decoding: bool = ..., timeout: float | None = ...) -> Any: ...
    async def can_read(self) -> bool: ...


def slot_of(key: bytes | str) -> int:
    return key_slot(key.encode() if isinstance(key, str) else key)


class Dialer:
    """Makes wires to the nodes of one address. Raises StartupError for files of TLS that can't be used."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._tls = _tls_context(address)

    def wire(self, node: Node) -> Wire:
        return self._wire(node, self._address.credentials, self._address.db)

    def sentinel(self, node: Node) -> Wire:
        return self._wire(node, self._address.sentinel_credentials, 0)

    def _wire(self, node: Node, credentials: Credentials, db: int) -> Wire:
        connection = (Connection if self._tls is None else SSLConnection)(
            host=node.host,
            port=node.port,
            username=credentials.username,
            password=credentials.password,
            db=db,
            # Commands have one time limit as a whole, set where they are sent.
            socket_timeout=None,
            socket_connect_timeout=self._timeout_s,
            socket_keepalive=True,
            client_name=CLIENT_NAME,
            driver_info=None,
            protocol=2,
        )
        if isinstance(connection, SSLConnection) and self._tls is not None:
            # Made once: reading the authorities takes milliseconds.
            connection.ssl_context = self._tls
        return Wire(node, cast("_Connection", connection))


def _tls_context(address: Address) -> RedisSSLContext | None:
    tls = address.tls
    if tls is None:
        return None
    context = RedisSSLContext(
        keyfile=tls.keyfile,
        certfile=tls.certfile,
        cert_reqs=tls.cert_reqs,
        ca_certs=tls.ca_certs,
        check_hostname=tls.check_hostname,
    )
    try:
        context.get()
    except OSError as error:
        files = ", ".join(filter(None, (tls.ca_certs, tls.certfile, tls.keyfile)))
        raise StartupError(f"redis_url: the TLS files {files} can't be used: {error}") from error
    return context


class Wire:
    """A connection, used by one task at a time. Cancelling a call closes it."""

    def __init__(self, node: Node, connection: _Connection) -> None:
        self.node = node
        self._connection = connection

    async def open(self) -> None:
        try:
            await self._connection.connect()
        except _FAILURES as error:
            raise self._told("connecting", error, in_doubt=False) from error

    async def ask(self, *args: Value) -> Any:
        """Send a command and return its reply: bytes, an integer, None, or a list of these."""
        await self.send(*args)
        try:
            return await self._connection.read_response(disable_decoding=True)
        except _FAILURES as error:
            raise self._told(str(args[0]), error, in_doubt=True) from error

    async def send(self, *args: Value) -> None:
        """Send a command whose reply `next` will return."""
        if not self._connection.is_connected:
            # redis-py would connect anew.
            raise LinkLost(f"{args[0]!s}: the connection is closed ({self.node})")
        try:
            await self._connection.send_command(*args)
        except _FAILURES as error:
            raise self._told(str(args[0]), error, in_doubt=True) from error

    async def next(self) -> Any:
        """Return the next reply or message, whenever it comes. An error reply raises, and leaves the wire open."""
        try:
            return await self._connection.read_response(disable_decoding=True, timeout=math.inf)
        except _FAILURES as error:
            raise self._told("reading", error, in_doubt=True) from error

    async def usable(self) -> bool:
        """Whether the connection is open, with nothing left to read."""
        try:
            return self._connection.is_connected and not await self._connection.can_read()
        except _FAILURES:
            return False

    @property
    def connected(self) -> bool:
        return self._connection.is_connected

    async def close(self) -> None:
        try:
            await self._connection.disconnect()
        except redis_errors.TimeoutError:
            # With TLS the other side has to agree to the end, and may be gone.
            return

    def _told(self, doing: str, error: Exception, *, in_doubt: bool) -> LinkLost | LinkRefused:
        """Return the error in the words of this package."""
        text = str(error)
        code = getattr(error, "status_code", None) or text.partition(" ")[0]
        what = f"{doing}: {text if text.startswith(code) else f'{code} {text}'} ({self.node})"
        if isinstance(error, redis_errors.AskError):
            node = Node(error.host or self.node.host, error.port)
            return Redirected(what, error.slot_id, node, asking=not isinstance(error, redis_errors.MovedError))
        if isinstance(error, redis_errors.NoScriptError):
            return ScriptMissing(what)
        # Redis 6 tells the code of an error in a script within the text, after a minus.
        if code in _WORTH_A_RETRY or any(f"-{known} " in text for known in _WORTH_A_RETRY):
            return LinkLost(what)
        if isinstance(error, _REFUSALS):
            return LinkRefused(what)
        if isinstance(error.__context__, ssl.SSLCertVerificationError):
            return LinkRefused(what)
        return LinkLost(what, in_doubt=in_doubt)

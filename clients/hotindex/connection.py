"""A client's connection to a gateway, made again whenever it is lost: commands and their replies, and what is pushed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from hotindex import wire
from hotindex.backoff import Backoff
from hotindex.errors import ConnectionLost, HotindexError, InvalidRequest, RequestTimeout, from_message

FINAL_CLOSE_CODES = frozenset({4401, 4403})
"""Close codes after which reconnecting is no use."""

_CLOSE_S = 5.0
_TOO_BIG = 1009
_UNREACHABLE = (OSError, InvalidHandshake, TimeoutError, EOFError)


class Pushed(Protocol):
    """What the gateway pushes of some kind. Called by the reader, which never waits here."""

    @property
    def kinds(self) -> frozenset[str]:
        """The types of messages it takes."""
        ...

    def take(self, message: dict[str, Any]) -> None: ...

    def connected(self) -> None:
        """There is a connection, of which nothing has been read yet, save the first one's greeting."""
        ...

    def interrupted(self) -> None:
        """The connection is gone, and with it what the gateway had."""
        ...

    def fail(self, error: HotindexError) -> None:
        """There will be no more."""
        ...


class _Pending:
    """A command that waits for its reply. `at_once` is called with it before the next message is read."""

    __slots__ = ("at_once", "reply", "size_bytes")

    def __init__(self, size_bytes: int, at_once: Callable[[dict[str, Any]], None] | None) -> None:
        self.reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.size_bytes = size_bytes
        self.at_once = at_once


class Connection:
    """Commands may be sent by many tasks at once; a task of its own reads. `pushed` are to be set before it is opened."""

    def __init__(self, url: str, timeout_s: float, backoff: Backoff, max_message_bytes: int) -> None:
        self.url = url
        self.greeting: dict[str, Any] = {}
        """The gateway's `connected` message, of the latest connection."""
        self.pushed: tuple[Pushed, ...] = ()
        self._timeout_s = timeout_s
        self._backoff = backoff
        self._max_message_bytes = max_message_bytes
        self._connection: ClientConnection | None = None
        self._connected = asyncio.Event()
        self._refs = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None
        self._blamed: ClientConnection | None = None
        """The one that the gateway closed for a message too big."""
        self._given_up_bytes = 0
        """The largest command sent over this connection whose reply nobody waits for any more."""
        self._end: HotindexError | None = None

    @property
    def is_open(self) -> bool:
        """Whether commands needn't wait: there is a connection, or there won't be one again."""
        return self._connected.is_set()

    async def open(self) -> None:
        """Connect, and take the greeting.

        Raises ConnectionLost if the gateway can't be reached now, or doesn't greet; only later losses are made good.
        """
        assert self._runner is None, "a client connects once"
        try:
            connection = await self._dial()
            await self._take_greeting(connection)
        except _UNREACHABLE as error:
            raise ConnectionLost(f"can't connect to {self.url}: {error}") from error
        except InvalidURI as error:
            raise ConnectionLost(str(error), retryable=False) from error
        self._runner = asyncio.create_task(self._run(connection), name="hotindex client")

    async def close(self) -> None:
        """Close it; what waits for a reply or an update is told so."""
        self._stop(HotindexError("closed", "the client is closed", retryable=False))
        if self._connection is not None:
            await self._connection.close()
        if self._runner is not None:
            for task in (self._runner, *self._tasks):
                task.cancel()
            await asyncio.gather(self._runner, *self._tasks, return_exceptions=True)

    async def request(
        self,
        command: dict[str, Any],
        *,
        again: bool,
        at_once: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Send a command and return its reply; `again` says that it may be sent twice."""
        if self._runner is None:
            raise HotindexError(
                "not_connected", "use the client in an async with, or connect it first", retryable=False
            )
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    await self._connected.wait()
                    if self._end is not None:
                        raise self._end
                    try:
                        return await self._exchange(command, at_once)
                    except ConnectionLost:
                        if not again:
                            raise
                        # The reader may not have seen yet that the connection is gone; let it.
                        await asyncio.sleep(0)
        except TimeoutError:
            name = command.get("type") or command["action"]
            raise RequestTimeout(f"no answer to {name} within {self._timeout_s:g} s") from None

    async def renew(
        self,
        command: Callable[[], dict[str, Any]],
        began: Callable[[dict[str, Any]], None],
        refused: Callable[[HotindexError], None],
    ) -> None:
        """Begin again what the gateway pushes."""
        for attempt in itertools.count():
            try:
                await self._exchange(command(), began)
            except ConnectionLost:
                return  # the next connection begins with all subscriptions and watches
            except HotindexError as error:
                if not error.retryable:
                    refused(error)
                    return
                await asyncio.sleep(self._backoff.delay_s(attempt))
            else:
                return

    async def tell(self, command: dict[str, Any]) -> None:
        """Send a command that ends something, and wait until it has."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(command, None)
        except (HotindexError, TimeoutError):
            return  # without a connection there is nothing to end

    async def _exchange(
        self, command: dict[str, Any], at_once: Callable[[dict[str, Any]], None] | None
    ) -> dict[str, Any]:
        connection = self._connection
        if connection is None:
            raise ConnectionLost(f"no connection to {self.url}")
        ref = next(self._refs)
        data = wire.encode({**command, "ref": ref})
        pending = self._pending[ref] = _Pending(len(data), at_once)
        try:
            await connection.send(data)
            return await pending.reply
        except ConnectionClosed as error:
            if not pending.reply.done():
                self._cut_off(connection, error)
            return await pending.reply
        finally:
            del self._pending[ref]
            if pending.reply.cancel() or pending.reply.cancelled():
                self._given_up_bytes = max(self._given_up_bytes, pending.size_bytes)
            else:
                pending.reply.exception()  # looked at, whoever else was told

    async def _dial(self) -> ClientConnection:
        return await connect(
            self.url,
            subprotocols=[Subprotocol(wire.SUBPROTOCOL)],
            compression=None,
            max_size=self._max_message_bytes,
            open_timeout=self._timeout_s,
            close_timeout=min(self._timeout_s, _CLOSE_S),
        )

    async def _take_greeting(self, connection: ClientConnection) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._take_next(connection)
        except ConnectionClosed:
            return  # a loss like later ones, which `_run` meets first of all
        except BaseException as error:
            await connection.close()
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"no greeting within {self._timeout_s:g} s") from None
            raise

    async def _run(self, connection: ClientConnection) -> None:
        """Read from one connection after the other."""
        while True:
            self._connection = connection
            self._given_up_bytes = 0
            self._connected.set()
            for pushed in self.pushed:
                pushed.connected()
            try:
                while True:
                    await self._take_next(connection)
            except ConnectionClosed as closed:
                self._disconnected(closed)
            except HotindexError as error:
                self._stop(error)
                await connection.close()
            if self._end is not None:
                return
            connection = await self._redial()

    async def _redial(self) -> ClientConnection:
        for attempt in itertools.count():
            await asyncio.sleep(self._backoff.delay_s(attempt))
            try:
                return await self._dial()
            except _UNREACHABLE:
                continue
        raise AssertionError("the count never ends")

    def _disconnected(self, closed: ConnectionClosed) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None, "there was one to lose"
        for pushed in self.pushed:
            pushed.interrupted()
        code = closed.rcvd.code if closed.rcvd else None
        if code in FINAL_CLOSE_CODES:
            self._stop(ConnectionLost(f"the gateway closed the connection: {closed}", retryable=False))
        if self._end is None:
            self._connected.clear()
            self._cut_off(connection, closed)

    def _cut_off(self, connection: ClientConnection, closed: ConnectionClosed) -> None:
        """Tell all that wait for a reply; whoever notices first does."""
        code = closed.rcvd.code if closed.rcvd else None
        if code == _TOO_BIG and self._blamed is not connection:
            self._blamed = connection
            self._blame_largest(InvalidRequest("too_large", f"{self.url} takes no message as large", retryable=False))
        self._fail_pending(ConnectionLost(f"lost the connection to {self.url}: {closed}"))

    def _blame_largest(self, error: HotindexError) -> None:
        """Fail the command that was too large: the gateway doesn't read such a message, and can't say which it was."""
        waiting = [pending for pending in self._pending.values() if not pending.reply.done()]
        largest = max(waiting, key=lambda pending: pending.size_bytes, default=None)
        if largest is not None and largest.size_bytes > self._given_up_bytes:
            largest.reply.set_exception(error)

    def _fail_pending(self, error: HotindexError) -> None:
        for pending in self._pending.values():
            if not pending.reply.done():
                pending.reply.set_exception(error)

    async def _take_next(self, connection: ClientConnection) -> None:
        data = await connection.recv(decode=False)
        try:
            self._take(wire.decode(data))
        except (ValueError, TypeError, KeyError) as error:
            message = f"{self.url} sent what is no message: {error!r}"
            raise HotindexError("invalid_message", message, retryable=False) from error

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if message.get("ref") is not None:
            self._take_reply(message)
        elif kind == "error" and message["code"] == "too_large":
            self._blame_largest(from_message(message))
        elif kind == "connected":
            self.greeting = message
        else:
            self._push(message)

    def _push(self, message: dict[str, Any]) -> None:
        for pushed in self.pushed:
            if message["type"] in pushed.kinds:
                pushed.take(message)

    def _take_reply(self, message: dict[str, Any]) -> None:
        pending = self._pending.get(message["ref"])
        if pending is not None and not pending.reply.done():
            self._settle(pending, message)
        elif message["type"] == "watching":
            self._push(message)  # nobody waits for it any more, and the gateway has it

    def _settle(self, pending: _Pending, message: dict[str, Any]) -> None:
        if message["type"] == "error":
            pending.reply.set_exception(from_message(message))
            return
        pending.reply.set_result(message)
        if pending.at_once is not None:
            pending.at_once(message)

    def _stop(self, error: HotindexError) -> None:
        """End everything with `error`, once."""
        if self._end is not None:
            return
        self._end = error
        self._connected.set()
        self._fail_pending(error)
        for pushed in self.pushed:
            pushed.fail(error)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task, which ends with the connection at the latest."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

"""One client's conversation, without I/O: bytes in, steps out; what the steps led to in, bytes out.

    OPENING ── open() ──> OPEN ── close() ──> CLOSED

In OPEN a message is either answered at once (`Reply`: pings, and whatever is wrong with the message itself) or becomes a
`Perform`, which the caller carries out and then reports with `answer` or `fail`, once. A session takes no more messages
while `full`; the caller stops reading, so that a client that is too fast is slowed down by its own socket.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from gateway.errors import Conflict, HotindexError, Internal, InvalidArgument, RateLimited, TooLarge
from gateway.protocol import messages
from gateway.protocol.bucket import TokenBucket
from gateway.protocol.codec import Codec, Rejected
from gateway.protocol.messages import Command, Message, Ref
from gateway.protocol.timestamps import iso

PROTOCOL = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may ask for."""

    message_bytes: int = 16 << 20
    in_flight: int = 256
    in_flight_bytes: int = 32 << 20
    rooms: int = 128
    watches: int = 1000
    commands_per_s: float = 0.0
    """On average; a second's worth may come at once. 0 is no limit."""


@dataclass(frozen=True, slots=True)
class Reply:
    data: bytes


@dataclass(frozen=True, slots=True)
class Perform:
    """Carry out `command`. `size_bytes` is what it took on the wire."""

    command: Command
    size_bytes: int


class State(Enum):
    OPENING = auto()
    OPEN = auto()
    CLOSED = auto()


class Session:
    """`now` gives microseconds since the epoch."""

    def __init__(self, client_id: str, codec: Codec, limits: Limits, now: Callable[[], int]) -> None:
        self.client_id = client_id
        self.codec = codec
        self.state = State.OPENING
        self.rooms: set[str] = set()
        self.watches: set[str] = set()
        self._watch_ids = itertools.count(1)
        self._limits = limits
        self._now = now
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._commands = TokenBucket(limits.commands_per_s, now) if limits.commands_per_s else None

    def open(self, node: str, ping_interval_s: float) -> bytes:
        """Return the greeting."""
        assert self.state is State.OPENING, "a session opens once"
        self.state = State.OPEN
        return self.codec.encode(
            messages.Connected(
                client_id=self.client_id,
                message="Connected to hotindex",
                node=node,
                protocol=PROTOCOL,
                ping_interval_s=ping_interval_s,
            )
        )

    def close(self) -> None:
        self.state = State.CLOSED

    @property
    def full(self) -> bool:
        """Whether so much is under way that the next message has to wait."""
        return self._in_flight >= self._limits.in_flight or self._in_flight_bytes >= self._limits.in_flight_bytes

    def receive(self, data: bytes) -> Reply | Perform:
        """Take one message."""
        assert self.state is State.OPEN, "messages come between open and close"
        try:
            command = self._command(data)
        except Rejected as rejected:
            return Reply(self._error(rejected.ref, rejected.error))
        if self._commands is not None and (wait_s := self._commands.take()):
            limit = self._limits.commands_per_s
            message = f"this connection sends more than {limit:g} commands a second"
            return Reply(self._error(command.ref, RateLimited(message, retry_after_s=wait_s)))
        if isinstance(command, messages.Ping):
            return Reply(self._encode(messages.Pong(timestamp=iso(self._now())), command.ref))
        self._in_flight += 1
        self._in_flight_bytes += len(data)
        return Perform(command, len(data))

    def refuse(self, data: bytes, error: HotindexError) -> bytes:
        """Return the reply to a message that is not even looked at, but for its `ref`."""
        try:
            ref = self._command(data).ref
        except Rejected as rejected:
            ref = rejected.ref
        return self._error(ref, error)

    def _command(self, data: bytes) -> Command:
        if len(data) > self._limits.message_bytes:
            limit = self._limits.message_bytes
            raise Rejected(None, TooLarge(f"the message has {len(data)} bytes; the limit is {limit}"))
        return self.codec.command(data)

    def answer(self, done: Perform, message: Message) -> bytes:
        """Return the reply to a command that was carried out."""
        self._landed(done)
        return self._encode(message, done.command.ref)

    def fail(self, done: Perform, error: HotindexError) -> bytes:
        """Return the reply to a command that could not be carried out."""
        self._landed(done)
        return self._error(done.command.ref, error)

    def enter(self, collection: str) -> None:
        """Note a subscription. Raises InvalidArgument beyond the connection's limit."""
        if collection not in self.rooms and len(self.rooms) >= self._limits.rooms:
            raise InvalidArgument(
                f"collection {collection!r} would be this connection's subscription number {len(self.rooms) + 1};"
                f" the limit is {self._limits.rooms}",
                field="collection",
            )
        self.rooms.add(collection)

    def begin_watch(self) -> str:
        """Note a watch, and return its id. Raises InvalidArgument beyond the connection's limit."""
        if len(self.watches) >= self._limits.watches:
            raise InvalidArgument(
                f"this would be the connection's watch number {len(self.watches) + 1}; the limit is"
                f" {self._limits.watches}",
                field="action",
            )
        watch_id = f"w{next(self._watch_ids)}"
        self.watches.add(watch_id)
        return watch_id

    def _landed(self, done: Perform) -> None:
        self._in_flight -= 1
        self._in_flight_bytes -= done.size_bytes

    def _encode(self, message: Message, ref: Ref) -> bytes:
        return self.codec.encode(msgspec.structs.replace(message, ref=ref) if ref is not None else message)

    def _error(self, ref: Ref, error: HotindexError) -> bytes:
        return self._encode(error_message(error), ref)


def error_message(error: HotindexError) -> messages.ErrorMessage:
    """Return the wire form of an error."""
    return messages.ErrorMessage(
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        field=error.field,
        version=error.version if isinstance(error, Conflict) else None,
        retry_after_s=getattr(error, "retry_after_s", None),
        id=error.incident if isinstance(error, Internal) else None,
    )

"""Both encodings: bytes to typed commands, typed messages to bytes. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from gateway.errors import (
    HotindexError,
    InvalidArgument,
    InvalidFilter,
    InvalidMessage,
    InvalidVector,
    TooLarge,
    UnknownAction,
)
from gateway.protocol.checks import show
from gateway.protocol.framing import frame
from gateway.protocol.messages import CHOICES, COMMANDS, Command, Ref

_PATH = re.compile(r" - at `(?P<path>[^`]*)`$|`(?P<key>key)` in `(?P<of>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_HAVE_ACTIONS = ("user_interaction",)
"""Commands whose field `action` says what a user did."""
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


class _Envelope(msgspec.Struct):
    action: Any = None
    type: Any = None
    ref: Any = None


class Codec:
    """One of the two encodings.

    `binary` says which kind of WebSocket frame carries it.
    """

    def __init__(self, name: str, subprotocol: str, *, binary: bool) -> None:
        self.name = name
        self.subprotocol = subprotocol
        self.binary = binary
        decoder: Callable[[Any], Any] = msgspec.msgpack.Decoder if binary else msgspec.json.Decoder
        self._envelope = decoder(_Envelope)
        self._commands = {action: decoder(command) for action, command in COMMANDS.items()}
        self._anything = decoder(Any)
        self._encoder = msgspec.msgpack.Encoder() if binary else msgspec.json.Encoder()

    def __repr__(self) -> str:
        return f"Codec({self.name})"

    def encode(self, message: object) -> bytes:
        return self._encoder.encode(message)

    def framed(self, message: object) -> bytes:
        """Return the WebSocket frame of a message."""
        return frame(self._encoder.encode(message), binary=self.binary)

    def command(self, data: bytes) -> Command:
        """Decode one client message. Raises a Rejected that carries the message's `ref`, as far as it can be read."""
        ref: Ref = None
        try:
            envelope = self._decode(self._envelope, data)
            ref = _ref(envelope.ref)
            action = envelope.type if envelope.action is None or envelope.type in _HAVE_ACTIONS else envelope.action
            if not isinstance(action, str):
                raise InvalidMessage(f"action must be a string, not {show(action)}", field="action")
            if action in _HAVE_ACTIONS and envelope.type is None:
                raise InvalidMessage(f"type is missing: {action} goes there, action is what the user did", field="type")
            if action not in self._commands:
                raise UnknownAction(f"unknown action {show(action)}; known are {', '.join(COMMANDS)}", field="action")
            command: Command = self._decode(self._commands[action], data)
        except HotindexError as error:
            raise Rejected(ref, error) from error
        return command

    def decode(self, data: bytes, kind: Any) -> Any:
        """Decode a message of a known kind, such as the body of an HTTP request."""
        decoder: Callable[[Any], Any] = msgspec.msgpack.Decoder if self.binary else msgspec.json.Decoder
        return self._decode(decoder(kind), data)

    def _decode(self, decoder: Any, data: bytes) -> Any:
        try:
            try:
                return decoder.decode(data)
            except msgspec.ValidationError as error:
                # Decodes once more, as far as that goes: it stopped where the first thing was wrong.
                raise self._explain(str(error), data) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise InvalidMessage("Invalid MessagePack" if self.binary else "Invalid JSON") from None
        except RecursionError:
            raise TooLarge("the message is nested too deep") from None

    def _explain(self, problem: str, data: bytes) -> HotindexError:
        """Make an error that names field and value of msgspec's, which names the path alone."""
        found = _PATH.search(problem)
        if missing := _MISSING.match(problem):
            field = f"{found['path']}.{missing['name']}".removeprefix("$.") if found else missing["name"]
            return InvalidMessage(f"{field} is missing", field=field)
        path = (found["path"] or found["of"] or "") if found else ""
        field = path.removeprefix("$").removeprefix(".") or "message"
        what = problem[: found.start()].replace("`", "") if found else problem.replace("`", "")
        names = {name for name, _ in _STEP.findall(path)}
        if "enum value" in what and (known := names & CHOICES.keys()):
            what = f"known are {', '.join(map(str, CHOICES[known.pop()]))}"
        message = f"{field}{self._value(data, path)}: {what[:1].lower()}{what[1:]}"
        if "vector" in names:
            return InvalidVector(message, field=field)
        if "filter" in names:
            return InvalidFilter(message, field=field)
        return (InvalidMessage if "got" in what else InvalidArgument)(message, field=field)

    def _value(self, data: bytes, path: str) -> str:
        """Return " is " and what stands at `path`, as far as it can be read."""
        try:
            return f" is {show(_at(self._anything.decode(data), path))}"
        except msgspec.ValidationError:
            return ""  # a number that no float can hold

    def metadata(self, text: str) -> Any:
        """Return stored metadata in the form `encode` takes."""
        return msgspec.json.decode(text) if self.binary else msgspec.Raw(text.encode())

    def vector(self, blob: bytes) -> Any:
        """Return a stored vector in the form `encode` takes: a bin, or an array of numbers."""
        return blob if self.binary else np.frombuffer(blob, np.float32).tolist()


class Rejected(Exception):
    """A message that is no command; `error` says why, `ref` is what the reply carries."""

    def __init__(self, ref: Ref, error: HotindexError) -> None:
        super().__init__(error.message)
        self.ref = ref
        self.error = error


def _ref(value: object) -> Ref:
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise InvalidMessage(f"ref must be a string or an integer, not {show(value)}", field="ref")
    return value


def _at(value: Any, path: str) -> Any:
    for name, index in _STEP.findall(path):
        try:
            value = value[int(index)] if index else value[name]
        except (KeyError, IndexError, TypeError):
            break
    return value


JSON = Codec("json", "hotindex.v1.json", binary=False)
MSGPACK = Codec("msgpack", "hotindex.v1.msgpack", binary=True)
BY_SUBPROTOCOL = {codec.subprotocol: codec for codec in (JSON, MSGPACK)}

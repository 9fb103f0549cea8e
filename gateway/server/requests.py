"""What HTTP requests say, and the form in which they are answered."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from aiohttp import web

from gateway.errors import InvalidArgument, InvalidFilter, InvalidMessage, TooLarge
from gateway.protocol import checks, messages
from gateway.protocol.codec import JSON, MSGPACK, Codec

MSGPACK_TYPE = "application/msgpack"
_BODY_S = 60.0
_INTEGER = re.compile(r"-?[0-9]{1,30}")
_T = TypeVar("_T")
_Default = TypeVar("_Default", int, None)


def accepted(request: web.Request) -> Codec:
    return MSGPACK if MSGPACK_TYPE in request.headers.get("Accept", "") else JSON


def respond(request: web.Request, body: object, status: int = 200) -> web.Response:
    codec = accepted(request)
    content_type = MSGPACK_TYPE if codec is MSGPACK else "application/json"
    return web.Response(status=status, body=codec.encode(body), content_type=content_type)


async def body(request: web.Request, kind: type[_T]) -> _T:
    codec = MSGPACK if request.content_type == MSGPACK_TYPE else JSON
    body: _T = codec.decode(await read(request), kind)
    return body


async def read(request: web.Request) -> bytes:
    """Return the body, which must not take for ever: it is counted until it has come."""
    try:
        async with asyncio.timeout(_BODY_S):
            return await request.read()
    except TimeoutError:
        raise InvalidMessage(f"the body didn't come whole within {_BODY_S:g} s") from None


def body_bytes(request: web.Request, most: int) -> int:
    """Return what a body takes, or may take. Raises TooLarge."""
    if not request.can_read_body:
        return 0
    length = request.content_length
    if length is not None and length > most:
        raise TooLarge(f"the body has {length} bytes; the limit is {most}")
    compressed = request.headers.get("Content-Encoding", "identity").lower() != "identity"
    return most if length is None or compressed else length


def named(request: web.Request, in_body: str | None) -> str | None:
    """Return the collection that the body or the query names."""
    in_query = request.query.get("collection")
    if in_body is not None and in_query not in (None, in_body):
        raise InvalidArgument(
            f"collection is {checks.show(in_body)} in the body and {checks.show(in_query)} in the query",
            field="collection",
        )
    return in_query if in_body is None else in_body


def include(request: web.Request) -> tuple[messages.Include, ...]:
    names = [name for name in request.query.get("include", "").split(",") if name]
    try:
        return msgspec.convert(names, tuple[messages.Include, ...])
    except msgspec.ValidationError:
        raise InvalidArgument(
            f"include is {','.join(names)!r}; it may have content and vector", field="include"
        ) from None


def where(request: web.Request) -> messages.JsonObject | None:
    text = request.query.get("filter")
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=messages.JsonObject)
    except (msgspec.DecodeError, UnicodeError):
        raise InvalidFilter(f"filter is {checks.show(text)}; it must be a JSON object", field="filter") from None


def integer(request: web.Request, name: str, default: _Default, low: int, high: int) -> int | _Default:
    text = request.query.get(name)
    return default if text is None else parsed(text, name, low, high)


def parsed(text: str, name: str, low: int, high: int) -> int:
    if not _INTEGER.fullmatch(text):
        raise InvalidMessage(f"{name} is {checks.show(text)}, not an integer", field=name)
    value = int(text)
    checks.between(value, low, high, name)
    return value

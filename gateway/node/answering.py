"""What this node answers others that ask for a collection it hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from gateway.engine.types import Done
from gateway.errors import HotindexError, InvalidMessage, NotFound
from gateway.ingest import intake
from gateway.node import exchange
from gateway.node.exchange import Found, Success
from gateway.node.hosted import Hosted

LARGEST_COPY = 10_000
_REACH_S = 4.0


async def answer(hosted: Hosted, call: str, body: bytes) -> bytes:
    """Return the encoded answer to a call. Raises a HotindexError, which is to be sent as a Failure."""
    if call not in _CALLS:
        raise NotFound(f"nodes don't ask for {call!r}", field="call")
    try:
        return await _CALLS[call](hosted, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidMessage(f"{call}: {error}") from None


async def _info(hosted: Hosted, _: bytes) -> bytes:
    return exchange.encode(await hosted.info())


async def _commit(hosted: Hosted, body: bytes) -> bytes:
    """Submit what was forwarded, in order; answer once all has ended."""
    submitted: list[asyncio.Future[Done | HotindexError] | HotindexError] = []
    for write in exchange.writes(body):
        try:
            intake.check(write, hosted.spec)
            submitted.append(await hosted.submit(write))
        except HotindexError as error:
            submitted.append(error)
    ended = [one if isinstance(one, HotindexError) else await one for one in submitted]
    return exchange.encode([Success(one) if isinstance(one, Done) else exchange.failure(one) for one in ended])


async def _search(hosted: Hosted, body: bytes) -> bytes:
    return exchange.encode(await hosted.search(exchange.decode_search(body)))


async def _get(hosted: Hosted, body: bytes) -> bytes:
    call = exchange.decode_get(body)
    found = await hosted.get(call.id, include_vector=call.include_vector)
    return exchange.encode(Found(*found) if found else Found(None, None))


async def _changes(hosted: Hosted, body: bytes) -> bytes:
    call = exchange.decode_changes(body)
    # Who asks follows another host, and may be ahead of this one: what isn't here yet would be passed over for good.
    await hosted.positions.reach(call.span.through, _REACH_S)
    if not hosted.reaches(call.span.origin, call.epoch):
        raise NotFound(f"no net change of epoch {call.epoch!r} after {call.span.origin}", field="epoch")
    page = await hosted.read_changes(call.span, call.limit, call.limit_bytes, call.with_vectors)
    return exchange.encode(page)


async def _copy(hosted: Hosted, body: bytes) -> bytes:
    call = exchange.decode_copy(body)
    collection = hosted.collection
    theirs = (collection.epoch, collection.writer.term)
    if (call.epoch, call.term) != theirs or not collection.remembers(call.origin):
        raise NotFound(f"no net change of term {call.term} of epoch {call.epoch!r} after {call.origin}", field="epoch")
    limit = min(call.limit, LARGEST_COPY)
    return await hosted.read(lambda: exchange.encode(collection.copy(call.after, limit)))


async def _interaction(hosted: Hosted, body: bytes) -> bytes:
    return exchange.encode(await hosted.learn(exchange.decode_interaction(body)))


async def _event(hosted: Hosted, body: bytes) -> bytes:
    return exchange.encode(await hosted.learn(exchange.decode_event(body)))


async def _put_user(hosted: Hosted, body: bytes) -> bytes:
    return exchange.encode(await hosted.put_user(exchange.decode_put_user(body)))


async def _forget_user(hosted: Hosted, body: bytes) -> bytes:
    return exchange.encode(await hosted.forget_user(exchange.decode_user_id(body)))


async def _user(hosted: Hosted, body: bytes) -> bytes:
    return exchange.encode(await hosted.user(exchange.decode_user_id(body)))


_CALLS: dict[str, Callable[[Hosted, bytes], Awaitable[bytes]]] = {
    "info": _info,
    "commit": _commit,
    "search": _search,
    "get": _get,
    "user_interaction": _interaction,
    "user_event": _event,
    "put_user": _put_user,
    "forget_user": _forget_user,
    "user": _user,
    "changes": _changes,
    "copy": _copy,
}

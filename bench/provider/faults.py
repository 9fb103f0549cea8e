"""What can go wrong with a service of embeddings: what a request to `bench.provider` may meet in place of vectors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

import numpy as np
from aiohttp import web

from bench.provider import Asked, Behaviour, answer, ok, refusal, vector_of, vectors


def status(code: int, headers: dict[str, str] | None = None, words: str = "as scripted") -> Behaviour:
    async def behave(_asked: Asked) -> web.StreamResponse:
        return refusal(code, words, headers)

    return behave


def ok_with(headers: dict[str, str]) -> Behaviour:
    async def behave(asked: Asked) -> web.StreamResponse:
        return answer(asked, vectors(asked), headers=headers)

    return behave


def raw(body: bytes) -> Behaviour:
    async def behave(_asked: Asked) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    return behave


def vectors_of(rows: Sequence[Sequence[float]], usage: object) -> Behaviour:
    """Send these numbers, and these tokens."""
    data = [{"embedding": row, "index": position} for position, row in enumerate(rows)]
    return raw(json.dumps({"data": data, "usage": usage}).encode())


async def cut(asked: Asked) -> web.StreamResponse:
    """Break the connection in the middle of the body."""
    body = _body(asked)
    response = web.StreamResponse()
    response.content_length = len(body)
    await response.prepare(asked.request)
    await response.write(body[: len(body) // 2])
    assert asked.request.transport is not None
    asked.request.transport.close()
    return response


def dripping(every_s: float, total_s: float) -> Behaviour:
    """Send the answer in small pieces, one `every_s`, so that it takes `total_s`."""

    async def behave(asked: Asked) -> web.StreamResponse:
        body = _body(asked)
        pieces = max(1, round(total_s / every_s))
        response = web.StreamResponse()
        response.content_length = len(body)
        await response.prepare(asked.request)
        for piece in _pieces(body, -(-len(body) // pieces)):
            await response.write(piece)
            await asyncio.sleep(every_s)
        return response

    return behave


async def never(_asked: Asked) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("nothing sets it")


def waiting(until: asyncio.Event, then: Behaviour) -> Behaviour:
    async def behave(asked: Asked) -> web.StreamResponse:
        await until.wait()
        return await then(asked)

    return behave


async def wrong_dimension(asked: Asked) -> web.StreamResponse:
    return answer(asked, [vector_of(text, asked.dimension + 1) for text in asked.texts])


async def wrong_count(asked: Asked) -> web.StreamResponse:
    return answer(asked, vectors(asked)[:-1])


async def wrong_indexes(asked: Asked) -> web.StreamResponse:
    response = json.loads(_body(asked))
    response["data"][0]["index"] = len(asked.texts)
    return web.json_response(response)


async def not_finite(asked: Asked) -> web.StreamResponse:
    """A NaN among the numbers: in base64 as such, in a list as JavaScript writes it, which is no JSON."""
    rows = vectors(asked)
    rows[0][0] = np.nan
    return answer(asked, rows)


async def zero(asked: Asked) -> web.StreamResponse:
    """The first text has a zero vector."""
    rows = vectors(asked)
    rows[0][:] = 0
    return answer(asked, rows)


async def shuffled(asked: Asked) -> web.StreamResponse:
    return answer(asked, vectors(asked), order=range(len(asked.texts))[::-1])


async def without_indexes(asked: Asked) -> web.StreamResponse:
    return answer(asked, vectors(asked), indexed=False)


async def other_encoding(asked: Asked) -> web.StreamResponse:
    """Send lists where base64 was asked for, and the reverse."""
    asked_for_base64 = asked.body.get("encoding_format") == "base64"
    return answer(asked, vectors(asked), encoding="float" if asked_for_base64 else "base64")


def at_most(texts: int, code: int = 413) -> Behaviour:
    """Refuse more than so many texts."""

    async def behave(asked: Asked) -> web.StreamResponse:
        if len(asked.texts) > texts:
            return refusal(code, f"{len(asked.texts)} texts are more than {texts}")
        return await ok(asked)

    return behave


def refusing(marker: str, code: int = 400) -> Behaviour:
    """Refuse texts with `marker` in them."""

    async def behave(asked: Asked) -> web.StreamResponse:
        if any(marker in text for text in asked.texts):
            return refusal(code, f"a text has {marker}")
        return await ok(asked)

    return behave


def redirecting(target: str) -> Behaviour:
    async def behave(_asked: Asked) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": target})

    return behave


def giant(size_bytes: int) -> Behaviour:
    """Send so many bytes, as fast as they are read."""

    async def behave(asked: Asked) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(asked.request)
        for _ in range(size_bytes >> 16):
            await response.write(b" " * (1 << 16))
        return response

    return behave


def echoing_key(code: int) -> Behaviour:
    async def behave(asked: Asked) -> web.StreamResponse:
        return refusal(code, f"Incorrect API key provided: {asked.headers.get('authorization')}")

    return behave


def failing(share: float, latency_s: float, drip_s: float, seed: int) -> Callable[[], Behaviour]:
    """Return what chooses: after `latency_s` a share of requests fails, each in one of the ways there are."""
    random = Random(seed)
    faults = (
        status(429, {"Retry-After": "0.2"}),
        status(429),
        status(500),
        cut,
        dripping(drip_s / 100, drip_s),
        wrong_count,
        not_finite,
    )

    def choose() -> Behaviour:
        return partial(_late, latency_s, random.choice(faults) if random.random() < share else ok)

    return choose


async def _late(latency_s: float, behaviour: Behaviour, asked: Asked) -> web.StreamResponse:
    await asyncio.sleep(latency_s)
    return await behaviour(asked)


def _body(asked: Asked) -> bytes:
    body = answer(asked, vectors(asked)).body
    assert isinstance(body, bytes)
    return body


def _pieces(body: bytes, size_bytes: int) -> Iterator[bytes]:
    for start in range(0, len(body), size_bytes):
        yield body[start : start + size_bytes]

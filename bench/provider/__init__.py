"""A service of embeddings that does what it is told: OpenAI's API over real HTTP, and whatever can go wrong with it.

In a test, `running` gives one on a free port, and each request meets what the next entry of its script says:

    async with running(dimension=8) as provider:
        provider.script = [faults.status(429, {"Retry-After": "1"}), faults.cut]
        ...
        provider.requests[0].texts

As a process it fails at random, the same way for the same seed; its port is the one line it prints:

    python -m bench.provider --latency-ms 40 --fail 0.2 --dimension 256

Its vectors are `vector_of` the text, so that anyone can tell whether a vector is that of a text (to 1e-6: who normalises
it again may round otherwise).
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from aiohttp import web

BODY_BYTES = 64 << 20
SHUTDOWN_S = 0.1


def vector_of(text: str, dimension: int) -> npt.NDArray[np.float32]:
    """Return the vector of `text`: float32[dimension] of unit length, in a direction of its own."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    numbers = np.random.default_rng(seed).standard_normal(dimension)
    return (numbers / np.linalg.norm(numbers)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for vectors."""

    texts: list[str]
    body: dict[str, Any]
    headers: dict[str, str]
    """With lower-case names."""
    at_s: float
    request: web.Request
    dimension: int


Behaviour: TypeAlias = Callable[[Asked], Awaitable[web.StreamResponse]]
"""What becomes of a request."""


@dataclass(slots=True)
class Provider:
    """A service that runs. `script` holds what the next requests meet; then they meet `otherwise`."""

    url: str
    script: Sequence[Behaviour] = ()
    otherwise: Behaviour = field(default_factory=lambda: ok)
    requests: list[Asked] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    answered: int = 0
    """Requests that got 200, to the end."""

    @property
    def texts(self) -> list[list[str]]:
        return [asked.texts for asked in self.requests]

    def next_behaviour(self) -> Behaviour:
        if not self.script:
            return self.otherwise
        behaviour, *self.script = self.script
        return behaviour

    def stats(self) -> dict[str, int]:
        return {
            "calls": len(self.requests),
            "answered": self.answered,
            "texts": sum(map(len, self.texts)),
            "distinct_texts": len({text for texts in self.texts for text in texts}),
            "most_at_once": self.most_at_once,
        }


@asynccontextmanager
async def running(
    dimension: int, port: int = 0, choose: Callable[[], Behaviour] | None = None
) -> AsyncIterator[Provider]:
    """Run a service in this process; `choose` says what a request meets, in place of a script."""
    provider = Provider("")

    async def embeddings(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = Asked(texts, body, headers, time.monotonic(), request, body.get("dimensions", dimension))
        provider.requests.append(asked)
        behaviour = choose() if choose is not None else provider.next_behaviour()
        provider.at_once += 1
        provider.most_at_once = max(provider.most_at_once, provider.at_once)
        try:
            response = await behaviour(asked)
        finally:
            provider.at_once -= 1
        provider.answered += response.status == 200
        return response

    async def stats(_request: web.Request) -> web.Response:
        return web.json_response(provider.stats())

    app = web.Application(client_max_size=BODY_BYTES)
    app.add_routes([web.post("/v1/embeddings", embeddings), web.get("/stats", stats)])
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield provider
    finally:
        await runner.cleanup()


async def ok(asked: Asked) -> web.StreamResponse:
    return answer(asked, vectors(asked))


def vectors(asked: Asked) -> list[npt.NDArray[np.float32]]:
    return [vector_of(text, asked.dimension) for text in asked.texts]


def answer(
    asked: Asked,
    rows: Sequence[npt.NDArray[np.float32]],
    *,
    order: Sequence[int] | None = None,
    indexed: bool = True,
    encoding: str | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    """Return an answer with `rows`, one after the other or in `order`, as asked for or in another `encoding`."""
    encoding = encoding or asked.body.get("encoding_format", "float")
    data: list[dict[str, Any]] = []
    for position in order if order is not None else range(len(rows)):
        row = rows[position].astype("<f4")
        item: dict[str, Any] = {"object": "embedding"}
        item["embedding"] = base64.b64encode(row.tobytes()).decode() if encoding == "base64" else row.tolist()
        data.append({**item, "index": position} if indexed else item)
    tokens = sum(len(text.encode()) // 4 + 1 for text in asked.texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"object": "list", "model": asked.body["model"], "data": data, "usage": usage}
    return web.json_response(body, headers=headers)


def refusal(status: int, words: str, headers: dict[str, str] | None = None) -> web.Response:
    """Return an error as OpenAI words it."""
    return web.json_response({"error": {"message": words, "type": "error"}}, status=status, headers=headers)

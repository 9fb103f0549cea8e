"""The service as a process."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from contextlib import suppress

from bench.provider import Behaviour, running
from bench.provider.faults import failing


async def _serve(dimension: int, port: int, choose: Callable[[], Behaviour]) -> None:
    async with running(dimension, port, choose) as provider:
        print(provider.url.rpartition(":")[2].partition("/")[0], flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="An OpenAI-compatible service of embeddings that can fail.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; it is printed")
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="time before a request is answered")
    parser.add_argument("--fail", type=float, default=0.0, help="share of requests that fail, 0 to 1")
    parser.add_argument("--drip-s", type=float, default=2.0, help="how long an answer takes that comes in small pieces")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    choose = failing(options.fail, options.latency_ms / 1000, options.drip_s, options.seed)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.dimension, options.port, choose))


if __name__ == "__main__":
    main()

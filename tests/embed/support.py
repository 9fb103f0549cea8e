"""A service's client on a scripted service, with a clock that only pauses move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import numpy as np

from bench.provider import Provider, vector_of
from gateway.embed.presets import resolve
from gateway.embed.service import Service
from gateway.engine.types import Vector
from gateway.errors import HotindexError

DIMENSION = 8


class Time:
    """Pauses take no time, and move the clock on by what they were to take."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.pauses_s: list[float] = []

    def clock(self) -> float:
        return self.now_s

    async def pause(self, seconds: float, interrupted: asyncio.Event) -> None:
        self.pauses_s.append(seconds)
        if not interrupted.is_set():
            self.now_s += seconds


@asynccontextmanager
async def service(provider: Provider, time: Time | None = None, **given: Any) -> AsyncIterator[Service]:
    """Yield the model `m` at `provider`, closed at the end."""
    time = time or Time()
    entry = {"url": provider.url, "model": "small", "dimension": DIMENSION, "timeout_s": 5.0, **given}
    made = Service(resolve("m", entry), clock=time.clock, wall_clock=lambda: 1.7e9, pause=time.pause, random=Random(7))
    try:
        yield made
    finally:
        await made.close()


def assert_vectors(outcomes: Sequence[Vector | HotindexError], texts: Sequence[str]) -> None:
    """Each outcome is the vector of its text, as the engine wants it."""
    assert len(outcomes) == len(texts)
    for outcome, text in zip(outcomes, texts, strict=True):
        assert isinstance(outcome, np.ndarray), outcome
        assert outcome.dtype == np.float32
        assert outcome.flags.c_contiguous
        assert outcome.flags.owndata
        np.testing.assert_allclose(outcome, vector_of(text, DIMENSION), atol=1e-6)

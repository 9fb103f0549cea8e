"""Work in threads that what comes after relies on having ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")


async def run_whole(executor: Executor, work: Callable[[], _T]) -> _T:
    """Run `work` in a thread. Cancelled, this still waits for it: what it works on may be closed right after."""
    future = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with suppress(asyncio.CancelledError):  # it is on its way out already
                await asyncio.wait([future])
        raise

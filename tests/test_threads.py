"""Work that is waited for whatever happens to who waits."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from gateway.threads import run_whole


async def test_who_is_cancelled_ends_after_the_work() -> None:
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go_on.wait()
        ended.set()

    with ThreadPoolExecutor(1) as executor:
        waiting = asyncio.create_task(run_whole(executor, work))
        await asyncio.to_thread(began.wait)
        for _ in range(2):  # a second time changes nothing
            waiting.cancel()
            await asyncio.wait([waiting], timeout=0.01)
            assert not waiting.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert ended.is_set()


async def test_results_and_errors_come_back() -> None:
    with ThreadPoolExecutor(1) as executor:
        assert await run_whole(executor, partial(int, "7")) == 7
        with pytest.raises(ValueError, match="seven"):
            await run_whole(executor, partial(int, "seven"))

"""A subscription whose updates a function is called with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from hotindex.subscription import Subscription
from hotindex.types import Event


class Listener:
    """Calls a function with each update, in order and one at a time, in a task of its own: it may use the client.

        async with client.listen("movies", on_update) as listener:
            await listener.ended()

    What the function raises ends the listener, and is raised by `ended` and at the end of the `async with`.
    """

    def __init__(self, subscription: Subscription, callback: Callable[[Event], Awaitable[None] | None]) -> None:
        if not callable(callback):
            raise TypeError(f"callback is {callback!r}; it must be a function")
        self.subscription = subscription
        self._callback = callback
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.subscription.__aenter__()
        self._task = asyncio.create_task(self._run(), name=f"listener to {self.subscription.collection}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task is not None, "it was entered"
        failed = self._task.done() and not self._task.cancelled() and self._task.exception() is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.subscription.close()
        if failed and error is None:
            self._task.result()

    async def ended(self) -> None:
        """Wait until the listener ends; raises what ended it."""
        assert self._task is not None, "it was entered"
        await asyncio.shield(self._task)

    async def _run(self) -> None:
        async for event in self.subscription:
            waiting = self._callback(event)
            if waiting is not None:
                await waiting

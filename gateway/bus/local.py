"""The order of commits on a node that is alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial

from gateway.bus.bus import Listener
from gateway.engine.collection import Collection
from gateway.engine.plan import WriteOutcome
from gateway.engine.types import Write
from gateway.errors import StorageUnavailable
from gateway.faults import internal


class LocalBus:
    """A Bus for one node. `room` is awaited before each commit."""

    def __init__(
        self, collection: Collection, listener: Listener, executor: Executor, room: Callable[[], Awaitable[None]]
    ) -> None:
        self._collection = collection
        self._listener = listener
        self._executor = executor
        self._room = room
        self.fault: str | None = None
        self.gather_s = 0.0

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def commit(self, writes: Sequence[Write]) -> Sequence[WriteOutcome]:
        await self._room()
        commit = partial(self._collection.commit, writes, with_vectors=self._listener.wants_vectors)
        try:
            committed = await asyncio.get_running_loop().run_in_executor(self._executor, commit)
        except Exception as error:
            self.fault = str(error)
            raise
        self.fault = None
        if committed.applied:
            try:
                self._listener.publish(committed.applied)
            except Exception as error:  # what is committed is acknowledged, whoever fails to pass it on
                internal(error, collection=self._collection.spec.name)
        return committed.outcomes

    async def probe(self) -> None:
        """Where the last commit failed, try another one."""
        if self.fault is None:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._collection.probe)
        except StorageUnavailable as error:
            self.fault = error.message
        else:
            self.fault = None

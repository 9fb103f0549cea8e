"""Writing again what this node alone had, after a collection was copied anew from the others."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import structlog

from gateway.errors import HotindexError
from gateway.faults import internal
from gateway.node import joining
from gateway.node.hosted import Hosted

log = structlog.get_logger(__name__)
_RETRY_S = 1.0


class Rewriting:
    """One task for each collection that has something noted, which stays noted until all of it has been written, through
    restarts. Call on the event loop.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, hosted: Hosted, directory: Path) -> None:
        task = asyncio.create_task(self._run(hosted, directory), name=f"write again {hosted.name}")
        self._tasks[hosted.name] = task

    async def stop(self, name: str) -> None:
        """Stop, before the collection does; what is left is written another time."""
        if task := self._tasks.pop(name, None):
            task.cancel()
            await asyncio.wait([task])

    async def _run(self, hosted: Hosted, directory: Path) -> None:
        while True:
            try:
                if await self._write(hosted, directory):
                    return
            except HotindexError as error:
                log.warning("not_written_again_yet", collection=hosted.name, reason=error.message)
            except Exception as error:  # what is noted stays so
                internal(error, collection=hosted.name)
            await asyncio.sleep(_RETRY_S)

    async def _write(self, hosted: Hosted, directory: Path) -> bool:
        """Write what is noted; tell whether nothing is left."""
        noted = await hosted.read(partial(joining.noted_again, directory))
        if not noted:
            return True
        writes = await hosted.read(partial(joining.rewrites, noted, hosted.collection))
        outcomes = await asyncio.gather(*[await hosted.submit(write) for write in writes])
        errors = [outcome for outcome in outcomes if isinstance(outcome, HotindexError)]
        if any(error.retryable for error in errors):
            log.warning("not_written_again_yet", collection=hosted.name, reason=errors[0].message, left=len(errors))
            return False
        for error in errors:
            log.error("not_written_again", collection=hosted.name, reason=error.message)
        await hosted.read(partial(joining.forget_again, directory))
        log.info("written_again", collection=hosted.name, documents=len(writes) - len(errors))
        return True

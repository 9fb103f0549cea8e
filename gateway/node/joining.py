"""Copying a collection from another node, and what to do with what this node alone had of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import partial

import numpy as np

from gateway.bus.shared import State
from gateway.embed.text import build_text
from gateway.engine.collection import Collection
from gateway.engine.copying import Copying
from gateway.engine.replay import Copy
from gateway.engine.types import Change, Operation, Put, Remove, Source, Write
from gateway.node.datadir import DataDirectory
from gateway.node.registry import Life
from gateway.protocol.codec import JSON

_PAGE = 2048


async def copy(
    directory: DataDirectory,
    life: Life,
    state: State,
    copies: AsyncIterator[Copy] | None,
    executor: Executor,
    now: Callable[[], int],
    purged_through: int = 0,
) -> None:
    """Make a copy, ready to be put in place. Raises what `copies` raises, and StorageUnavailable."""
    loop = asyncio.get_running_loop()
    path = directory.copying(life.spec.name)
    make = partial(Copying, path, life.spec, life.epoch, build_text, now)
    copying = await loop.run_in_executor(executor, make)
    try:
        if copies is not None:
            async for page in copies:
                await loop.run_in_executor(executor, copying.adopt, page)
        await loop.run_in_executor(executor, copying.finish, state.term, state.starts, purged_through)
    except BaseException:
        copying.abandon()
        raise


def changes_after(collection: Collection, index_version: int) -> Iterator[Change]:
    """Yield the net change after `index_version`. Blocks."""
    more = True
    while more:
        page = collection.copy(index_version, _PAGE)
        yield from page.changes
        index_version, more = page.through, page.more


def rewrites(tail: Iterable[Change], collection: Collection, agreed: int) -> Iterator[Write]:
    """Yield the writes that bring back what was changed here after `agreed`, but for what others have changed, or deleted,
    since then. Blocks.
    """
    elsewhere = {change.document.id for change in changes_after(collection, agreed)}
    for change in tail:
        if change.document.id not in elsewhere:
            yield Write((_again(change),), size_bytes=change.size_bytes)


def _again(change: Change) -> Operation:
    d = change.document
    if d.deleted:
        return Remove(d.id)
    metadata = JSON.decode(d.metadata.encode(), dict)
    if d.source is Source.CONTENT:
        return Put(d.id, content=d.content, metadata=metadata)
    if d.source is Source.FIELDS:
        return Put(d.id, metadata=metadata, from_fields=True)
    assert change.vector is not None, "a copy has the vectors"
    return Put(d.id, np.frombuffer(change.vector, np.float32), d.content, metadata)

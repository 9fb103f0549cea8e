"""Copying a collection from another node, and what to do with what this node alone had of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from gateway.bus.agreement import State
from gateway.engine.collection import Collection
from gateway.engine.copying import Copying
from gateway.engine.replay import Copy
from gateway.engine.types import Change, Operation, Put, Remove, Source, Write
from gateway.errors import StorageUnavailable
from gateway.node.datadir import DataDirectory
from gateway.node.registry import Life
from gateway.protocol.codec import JSON
from gateway.threads import run_whole

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
    path = directory.copying(life.spec.name)
    make = partial(Copying, path, life.spec, life.epoch, now)
    copying = await run_whole(executor, make)
    try:
        if copies is not None:
            async for page in copies:
                await run_whole(executor, partial(copying.adopt, page))
        await run_whole(executor, partial(copying.finish, state.term, state.starts, purged_through))
    except BaseException:
        copying.abandon()
        raise


class Again(msgspec.Struct, frozen=True, array_like=True):
    """What one node alone changed after the `agreed` index_version, and has to write again."""

    agreed: int
    changes: list[Change]


_AGAIN_FILE = "again.msgpack"
_AGAIN = msgspec.msgpack.Decoder(list[Again])


def note_again(directory: Path, again: Sequence[Again]) -> None:
    """Keep in a collection's folder what is to be written again, until it has been. Blocks; raises StorageUnavailable."""
    try:
        with (directory / _AGAIN_FILE).open("wb") as file:
            file.write(msgspec.msgpack.encode(again))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageUnavailable(f"can't note what is to be written again: {error}") from error


def noted_again(directory: Path) -> list[Again]:
    """Return what is to be written again. Blocks; raises StorageUnavailable."""
    path = directory / _AGAIN_FILE
    try:
        return _AGAIN.decode(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        raise StorageUnavailable(f"{path} can't be read: {error}") from error


def forget_again(directory: Path) -> None:
    (directory / _AGAIN_FILE).unlink(missing_ok=True)


def changes_after(collection: Collection, index_version: int) -> Iterator[Change]:
    """Yield the net change after `index_version`. Blocks."""
    more = True
    while more:
        page = collection.copy(index_version, _PAGE)
        yield from page.changes
        index_version, more = page.through, page.more


def rewrites(noted: Sequence[Again], collection: Collection) -> list[Write]:
    """Return the writes that bring back what is to be written again, but for what others have changed, or deleted, since;
    and what has been written again already. Blocks.
    """
    writes: list[Write] = []
    for again in noted:
        elsewhere = {change.document.id for change in changes_after(collection, again.agreed)}
        writes += [
            Write((_again(change),), size_bytes=change.size_bytes)
            for change in again.changes
            if change.document.id not in elsewhere
        ]
    return writes


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

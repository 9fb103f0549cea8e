"""Whether a store is what this folder held last, or something older or foreign that was put in its place.

A store restored from a backup counts its index_versions on from an older state. Positions that clients keep, and labels in
snapshots of the graph, may then name other things than they did. So a small file beside the store says how far it had
come; where the store isn't at least there, or the file isn't, the collection begins a new life under a new epoch.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

_FILE = "lineage.json"


class Lineage(msgspec.Struct, frozen=True):
    """The state a store of `epoch` has reached at the least."""

    epoch: str
    index_version: int


def write(directory: Path, lineage: Lineage) -> None:
    """Note how far the store in `directory` has come. Raises OSError."""
    temporary = directory / f"{_FILE}.tmp"
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(lineage))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, directory / _FILE)


def broken(directory: Path, found: Lineage) -> str | None:
    """Return why the store that was `found` in `directory` isn't the one that was there before, or None if it is."""
    try:
        noted = msgspec.json.decode((directory / _FILE).read_bytes(), type=Lineage)
    except FileNotFoundError:
        return f"{_FILE} is missing"
    except (OSError, ValueError) as error:
        return f"{_FILE} can't be read: {error}"
    if noted.epoch != found.epoch:
        return f"the store has epoch {found.epoch}, {_FILE} says {noted.epoch}"
    if noted.index_version > found.index_version:
        return f"the store is at index_version {found.index_version}, and was at {noted.index_version} before"
    return None

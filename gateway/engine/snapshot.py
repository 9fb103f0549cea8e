"""Snapshots of the graph: written by a forked child, believed only after verification.

hnswlib saves with the GIL held and reports success on a full disk, so a child of `fork` saves the graph as it stands while
the process serves on. A manifest with size and checksum is renamed into place last: a snapshot without one doesn't exist.
A snapshot only saves work. Recovery compares its labels with the store's, whatever its age, and none is needed.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from gateway.engine.checksums import Checksum, checksum
from gateway.engine.graph import HNSWLIB_VERSION, Graph
from gateway.engine.types import Spec
from gateway.errors import StorageUnavailable

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"graph-\d+\.json")

log = structlog.get_logger(__name__)


class Manifest(msgspec.Struct, frozen=True):
    """What a snapshot must be to be loaded."""

    format: int
    library: str
    epoch: str
    spec: Spec
    index_version: int
    count: int
    size_bytes: int
    crc32: int
    file: str
    dead: int
    """How many of the vectors are marked dead in the file."""
    first_hot: int
    """All labels in the file are below, and all that were live and not in it were not."""


def write(directory: Path, graph: Graph, spec: Spec, epoch: str, index_version: int, first_hot: int) -> Path:
    """Save `graph`, which has seen all up to `index_version`; return the manifest's path.

    Blocks until it is on disk, but holds the graph only while it forks. Raises StorageUnavailable, and leaves what was
    there before, if the disk doesn't take it.
    """
    last = next(iter(_manifests(directory)), None)
    number = int(last.stem.removeprefix("graph-")) + 1 if last else 1
    target = directory / f"graph-{number:08d}.hnsw"
    temporary = target.with_suffix(".tmp")
    with graph.turns.search():
        # A search's hold is enough: it keeps the mover out, the only one that changes the graph.
        count, dead, expected = len(graph), graph.dead, graph.file_bytes
        child = _fork_and_save(graph, temporary)
    _, status = os.waitpid(child, 0)
    try:
        if code := os.waitstatus_to_exitcode(status):
            raise StorageUnavailable(f"can't save a snapshot to {temporary}: the saving process ended with {code}")
        size, crc = checksum(temporary)
        if size != expected:
            raise StorageUnavailable(f"can't save a snapshot to {temporary}: {size} of {expected} bytes written")
        os.rename(temporary, target)
        manifest = Manifest(
            FORMAT, HNSWLIB_VERSION, epoch, spec, index_version, count, size, crc, target.name, dead, first_hot
        )
        path = _write_manifest(target.with_suffix(".json"), manifest)
    except OSError as error:
        raise StorageUnavailable(f"can't save a snapshot to {target}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    for old in _manifests(directory)[KEPT:]:
        old.unlink()
        old.with_suffix(".hnsw").unlink(missing_ok=True)
    return path


def _fork_and_save(graph: Graph, path: Path) -> int:
    child = os.fork()
    if child:
        return child
    # Only this thread lives on here, and locks of others may be held for ever: no logging, no imports, no return.
    code = 1
    try:
        # The parent's sockets and lock files must not outlive it in here.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        graph.save(path)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        code = 0
    finally:
        os._exit(code)


def _write_manifest(path: Path, manifest: Manifest) -> Path:
    temporary = path.with_suffix(".json.tmp")
    with temporary.open("wb") as file:
        sealed = _Sealed(manifest, zlib.crc32(msgspec.json.encode(manifest)))
        file.write(msgspec.json.format(msgspec.json.encode(sealed)))
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    sync_directory(path.parent)
    return path


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifests(directory: Path) -> list[Path]:
    return sorted((path for path in directory.glob("graph-*.json") if _NAME.fullmatch(path.name)), reverse=True)


class _Sealed(msgspec.Struct, frozen=True):
    """What a manifest's file holds: the manifest, and the CRC-32 of its JSON without white space."""

    manifest: Manifest
    crc32: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A graph as it was saved."""

    manifest: Manifest
    graph: Graph


def load(directory: Path, spec: Spec, epoch: str, index_version: int, checksum: Checksum = checksum) -> Snapshot | None:
    """Return the newest snapshot, of a state up to `index_version`, that holds what its manifest says, or None.

    Others are renamed aside.
    """
    for unfinished in directory.glob("graph-*.tmp"):
        if unfinished.is_file():
            unfinished.unlink()
    for path, found in inspect(directory, spec, epoch, index_version, checksum):
        if isinstance(found, Snapshot):
            return found
        log.warning("snapshot_rejected", snapshot=str(path), reason=found)
        _set_aside(path)
    return None


def inspect(
    directory: Path, spec: Spec, epoch: str, index_version: int, checksum: Checksum = checksum
) -> Iterator[tuple[Path, Snapshot | str]]:
    """Yield each manifest, newest first, with the graph it describes, or with the reason not to load that."""
    for path in _manifests(directory):
        try:
            manifest = _unseal(path.read_bytes())
            _verify(directory, manifest, spec, epoch, index_version, checksum)
            graph = Graph.load(spec, directory / manifest.file, manifest.count, manifest.dead)
        except (OSError, ValueError, RuntimeError) as error:
            yield path, str(error)
        else:
            yield path, Snapshot(manifest, graph)


def _unseal(data: bytes) -> Manifest:
    sealed = msgspec.json.decode(data, type=_Sealed)
    if zlib.crc32(msgspec.json.encode(sealed.manifest)) != sealed.crc32:
        raise ValueError("the manifest is not what was written")
    return sealed.manifest


def _verify(
    directory: Path, manifest: Manifest, spec: Spec, epoch: str, index_version: int, checksum: Checksum
) -> None:
    """Raise ValueError unless the file is the one the manifest describes, of this collection, and of no later state."""
    expected = {"format": FORMAT, "library": HNSWLIB_VERSION, "epoch": epoch, "spec": spec}
    for name, value in expected.items():
        if getattr(manifest, name) != value:
            raise ValueError(f"{name} is {getattr(manifest, name)!r}, expected {value!r}")
    if manifest.index_version > index_version:
        raise ValueError(f"index_version is {manifest.index_version}, the store's {index_version}")
    size, crc = checksum(directory / manifest.file)
    if (size, crc) != (manifest.size_bytes, manifest.crc32):
        raise ValueError(
            f"{manifest.file} has {size} bytes and CRC {crc:08x},"
            f" the manifest says {manifest.size_bytes} and {manifest.crc32:08x}"
        )


def _set_aside(path: Path) -> None:
    for part in (path, path.with_suffix(".hnsw")):
        if part.exists():
            os.rename(part, part.with_name(part.name + ".bad"))

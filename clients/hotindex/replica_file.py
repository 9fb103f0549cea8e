"""The file of a replica: a line of JSON that says what it is, documents as MessagePack, and a checksum of all before.

It is written beside the old one and renamed into its place: a crash leaves one of the two.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from hotindex import wire
from hotindex.errors import InvalidFile
from hotindex.types import Metric, StoredDocument

_FORMAT = 1
_CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class Contents:
    """`identity` says what the replica is of; the position is `index_version` of `epoch`."""

    identity: dict[str, Any]
    epoch: str
    index_version: int
    metric: Metric
    documents: list[StoredDocument]


def write(path: Path, contents: Contents) -> None:
    """Write the file, durably. Raises OSError, and then leaves what was there."""
    temporary = path.with_name(f"{path.name}.new")
    checksum = 0
    try:
        with temporary.open("wb") as file:
            for part in _parts(contents):
                checksum = zlib.crc32(part, checksum)
                file.write(part)
            file.write(checksum.to_bytes(_CHECKSUM_BYTES, "big"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _parts(contents: Contents) -> Iterator[bytes]:
    position = {"epoch": contents.epoch, "index_version": contents.index_version, "metric": contents.metric}
    header = {"hotindex_replica": _FORMAT, **contents.identity, **position, "documents": len(contents.documents)}
    yield json.dumps(header).encode() + b"\n"
    for document in contents.documents:
        vector = None if document.vector is None else wire.vector_bytes(document.vector)
        at = document.updated_at.isoformat()
        yield wire.pack([document.id, document.version, at, document.metadata, document.content, vector])


def read(path: Path, identity: dict[str, Any]) -> Contents:
    """Read a file. Raises InvalidFile where it is damaged, or of a replica with another identity."""
    with path.open("rb") as file:
        _verify(path, file)
        header = json.loads(file.readline())
        if header.get("hotindex_replica") != _FORMAT:
            raise InvalidFile(f"{path} is of format {header.get('hotindex_replica')!r}, not {_FORMAT}")
        for name, value in identity.items():
            if header[name] != value:
                raise InvalidFile(f"{path} is of a replica with {name} {header[name]!r}, not {value!r}")
        unpacker = wire.unpacker(file)
        documents = [_document(identity["collection"], unpacker.unpack()) for _ in range(header["documents"])]
    return Contents(identity, header["epoch"], header["index_version"], header["metric"], documents)


def _verify(path: Path, file: IO[bytes]) -> None:
    """Compare the checksum, and go back to the beginning."""
    size = left = file.seek(0, os.SEEK_END) - _CHECKSUM_BYTES
    file.seek(0)
    checksum = 0
    while left > 0:
        block = file.read(min(left, 1 << 20))
        checksum = zlib.crc32(block, checksum)
        left -= len(block)
    if size <= 0 or file.read() != checksum.to_bytes(_CHECKSUM_BYTES, "big"):
        raise InvalidFile(f"{path} is damaged, or no replica's file: its checksum differs")
    file.seek(0)


def _document(collection: str, fields: list[Any]) -> StoredDocument:
    document_id, version, at, metadata, content, vector = fields
    parsed = datetime.fromisoformat(at)
    return StoredDocument(collection, document_id, version, parsed, metadata, content, wire.vector_array(vector))

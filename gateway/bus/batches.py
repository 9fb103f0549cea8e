"""The messages in which batches of proposals travel, through Redis' channels and its stream. No I/O.

A line of text, made where the batch gets its place: epoch, term, first and last index_version; then the proposals, as one
MessagePack array.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from gateway.engine.replay import Proposal, Sequenced

_ENCODER = msgspec.msgpack.Encoder()
_PROPOSALS = msgspec.msgpack.Decoder(tuple[Proposal, ...])


@dataclass(frozen=True, slots=True)
class Header:
    """What tells whether a batch comes next, before it is decoded."""

    epoch: str
    term: int
    first_index_version: int
    index_version: int


def decode_header(message: bytes) -> tuple[Header, memoryview]:
    """Return a message's header, and its body. Raises ValueError."""
    end = message.index(b"\n")
    epoch, term, first, last = message[:end].decode().split()
    return Header(epoch, int(term), int(first), int(last)), memoryview(message)[end + 1 :]


def decode_body(header: Header, body: memoryview) -> Sequenced:
    """Return the batch. Raises msgspec.DecodeError."""
    return Sequenced(header.first_index_version, header.index_version, _PROPOSALS.decode(body))


def encode(checked: Sequence[Sequence[str]], proposals: Mapping[int, Proposal]) -> tuple[bytes, bytes]:
    """Return what a script takes to give writes their place: what to check of each, and the proposals, joined.

    `checked` holds for each write the keys that must not have been written to since; `proposals` those of writes that
    change something, by their place among all.
    """
    bodies = {i: _ENCODER.encode(proposal) for i, proposal in proposals.items()}
    writes = [
        [len(proposals[i].entries) if i in proposals else 0, len(bodies.get(i, b"")), *keys]
        for i, keys in enumerate(checked)
    ]
    return _ENCODER.encode(writes), b"".join(bodies[i] for i in sorted(bodies))


def keys(document_ids: Iterable[str], event_id: str | None) -> list[str]:
    """Return the keys under which a write is remembered."""
    found = [f"d{document_id}" for document_id in dict.fromkeys(document_ids)]
    return found if event_id is None else [*found, f"e{event_id}"]

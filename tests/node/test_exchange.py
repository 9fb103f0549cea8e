"""What nodes send each other comes out as it went in."""

from __future__ import annotations

import numpy as np
import pytest

from gateway import errors
from gateway.engine.types import Patch, Put, Remove, Write
from gateway.errors import Conflict, HotindexError, InvalidVector, NotFound, Overloaded, StorageUnavailable
from gateway.node import exchange


def test_writes_are_forwarded_whole() -> None:
    sent = [
        Write(
            (
                Put("a", np.array([1, 2], np.float32), "c", {"x": [1, {"y": None}]}, 3),
                Put("f", metadata={"name": "n"}, from_fields=True),
            ),
            atomic=True,
            event_id="e",
            priority=2,
            size_bytes=7,
            listed_as="documents",
        ),
        Write((Patch("b", {"x": None}, "c", 1), Remove("d"), Patch("d", {}), Remove("b")), listed_as="operations"),
    ]
    came = list(exchange.writes(exchange.encode_writes(sent)))
    for one, other in zip(sent, came, strict=True):
        assert (one.atomic, one.event_id, one.priority, one.size_bytes, one.listed_as) == (
            other.atomic,
            other.event_id,
            other.priority,
            other.size_bytes,
            other.listed_as,
        )
    first, fields = came[0].operations
    assert isinstance(first, Put)
    assert first.vector is not None
    assert first.vector.tolist() == [1, 2]
    assert (first.content, first.metadata, first.if_version) == ("c", {"x": [1, {"y": None}]}, 3)
    assert isinstance(fields, Put)
    assert fields.from_fields
    assert came[1].operations == sent[1].operations


@pytest.mark.parametrize(
    "error",
    [
        Conflict("c", version=4, field="if_version"),
        InvalidVector("v", field="vector"),
        NotFound("n", field="id"),
        Overloaded("o", retry_after_s=2.5, field="f"),
        errors.EmbeddingUnavailable("e", retry_after_s=1.5),
        errors.EmbeddingUnavailable("e"),
        StorageUnavailable("s"),
        errors.Internal("abc"),
    ],
)
def test_errors_are_told_on(error: HotindexError) -> None:
    body = exchange.encode(exchange.failure(error))
    came = exchange.error(exchange.decode_failure(body))
    assert type(came) is type(error)
    assert (came.message, came.field, vars(came)) == (error.message, error.field, vars(error))


def test_frames_are_taken_whole_from_pieces() -> None:
    sent = [b"", b"abc", b"x" * 70_000]
    data = b"".join(len(one).to_bytes(4, "big") + one for one in sent)
    buffer = bytearray()
    came: list[bytes] = []
    for at in range(0, len(data), 1000):
        buffer += data[at : at + 1000]
        came += exchange.relayed(buffer)
    assert came == sent
    assert not buffer

"""The limit of a batch: it shrinks where it was too large, and grows back."""

from __future__ import annotations

from gateway.embed.limit import GROW_AFTER, SMALL_BYTES, BatchLimit
from gateway.embed.model import Batch

CONFIGURED = Batch(256, 1 << 20)


def accept(limit: BatchLimit, batches: int) -> Batch:
    for _ in range(batches):
        limit.accepted()
    return limit.current


def test_many_small_texts_were_too_many_and_not_too_large() -> None:
    limit = BatchLimit(CONFIGURED)
    limit.too_large(Batch(64, 1000))
    assert limit.current == Batch(64, SMALL_BYTES)


def test_few_large_texts_lower_both_limits() -> None:
    limit = BatchLimit(CONFIGURED)
    limit.too_large(Batch(4, 400_000))
    assert limit.current == Batch(4, 400_000)
    limit.too_large(Batch(8, 500_000))
    assert limit.current == Batch(4, 400_000), "it only shrinks"


def test_it_grows_by_a_quarter_now_and_then_up_to_the_settings() -> None:
    limit = BatchLimit(CONFIGURED)
    limit.too_large(Batch(2, 1 << 19))
    assert accept(limit, GROW_AFTER - 1).texts == 2
    assert accept(limit, 1) == Batch(3, (1 << 19) + (1 << 17))
    limit.too_large(Batch(2, 1 << 19))
    assert accept(limit, GROW_AFTER - 1).texts == 2, "the count starts over"
    assert accept(limit, 40 * GROW_AFTER) == CONFIGURED

"""Requests and answers as bytes: any answer is vectors, or one of two errors."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.embed import wire
from gateway.embed.wire import Malformed, WrongDimension

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "embedding", "index", "usage"]), inner)
    ),
    max_leaves=12,
)
NUMBERS = st.lists(st.floats() | st.integers() | st.none(), min_size=2, max_size=3)
ITEMS = st.fixed_dictionaries(
    {"embedding": NUMBERS | st.binary(max_size=9).map(lambda raw: base64.b64encode(raw).decode())},
    optional={"index": st.integers(-1, 2) | st.none()},
)
ANSWERS = JSON | st.fixed_dictionaries({"data": st.lists(ITEMS, max_size=3)}, optional={"usage": JSON})


def answer(*items: dict[str, Any]) -> bytes:
    return json.dumps({"data": items}).encode()


@given(ANSWERS, st.integers(0, 40))
def test_whatever_comes_is_vectors_of_unit_length_or_a_named_error(told: Any, cut: int) -> None:
    body = json.dumps(told).encode()
    try:
        embeddings = wire.decode(body[: len(body) - cut], 2, 2)
    except (Malformed, WrongDimension):
        return
    assert len(embeddings.vectors) == 2
    for vector in embeddings.vectors:
        if vector is not None:
            assert vector.shape == (2,)
            assert vector.dtype == np.float32
            assert abs(float(np.linalg.norm(vector)) - 1) < 1e-6
    assert embeddings.tokens is None or embeddings.tokens > 0


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_the_direction_is_kept(numbers: list[float]) -> None:
    (vector,) = wire.decode(answer({"embedding": numbers}), 1, 3).vectors
    if vector is None:
        assert not any(numbers)
        return
    wide = np.array(numbers) / np.max(np.abs(numbers))
    np.testing.assert_allclose(vector, wide / np.linalg.norm(wide), atol=1e-6)


def test_vectors_are_in_the_order_of_their_indexes() -> None:
    body = answer({"embedding": [0, 1], "index": 1}, {"embedding": [1, 0], "index": 0})
    first, second = wire.decode(body, 2, 2).vectors
    assert first is not None
    assert second is not None
    assert (first.tolist(), second.tolist()) == ([1, 0], [0, 1])


@pytest.mark.parametrize("indexes", [(0, 0), (1, 2), (-1, 0), (0, None)])
def test_indexes_have_to_be_those_of_the_texts(indexes: tuple[int | None, ...]) -> None:
    with pytest.raises(Malformed, match="indexes"):
        wire.decode(answer(*({"embedding": [1, 0], "index": index} for index in indexes)), 2, 2)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "no\\n  such model", "type": "x"}}', "no such model"),
        (b'{"error": "plain"}', "plain"),
        (b'{"message": "too large", "type": "Validation"}', "too large"),
        (b'{"detail": [{"loc": ["input"]}]}', '[{"loc":["input"]}]'),
        (b"<h1>Bad\n Gateway</h1>", "<h1>Bad Gateway</h1>"),
        (b"\xff", "\ufffd"),
        (b"", ""),
    ],
)
def test_a_service_s_own_words_are_found(body: bytes, words: str) -> None:
    assert wire.reason(body) == words


def test_the_longest_answer_is_within_the_limit() -> None:
    number = -1.2345678901234567e-300
    items = [{"object": "embedding", "index": index, "embedding": [number] * 4096} for index in range(3)]
    body = json.dumps({"object": "list", "data": items}, indent=8).encode()
    assert len(body) < wire.answer_limit_bytes(3, 4096)

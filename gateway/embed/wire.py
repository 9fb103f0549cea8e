"""The OpenAI embeddings API, as bytes: a request's body, and what its answer holds.

Source: https://platform.openai.com/docs/api-reference/embeddings/create. Services differ in what they leave out, so an
answer may lack `index` and `usage`, and may hold lists where base64 was asked for, and the reverse.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.embed.options import ServiceOptions
from gateway.engine.types import Vector

SHOWN = 200
"""Characters of a service's own words that are passed on."""

OK = range(200, 300)

_FLOAT32_BYTES = 4
# A float64 is written with 25 characters at most; on a line of its own it is indented.
_NUMBER_BYTES = 64
_ITEM_BYTES = 1 << 10
_REST_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: Mapping[str, str]
    """With lower-case names."""
    body: bytes


class Malformed(Exception):
    """An answer that can't be read: the next one may be better."""


class WrongDimension(Exception):
    """Vectors of another dimension than the settings say: the next answer has the same."""

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self.dimension = dimension


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """What an answer holds: per text a vector of unit length, or None for a zero vector, which has no direction."""

    vectors: list[Vector | None]
    tokens: int | None
    """None where the service doesn't say."""


class _Item(msgspec.Struct):
    embedding: str | list[float]
    index: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: object = None


_ANSWER = msgspec.json.Decoder(_Answer)
_ANYTHING = msgspec.json.Decoder()


def request(options: ServiceOptions, texts: Sequence[str]) -> bytes:
    """Return the body that asks for the vectors of `texts`."""
    body: dict[str, object] = {"model": options.model, "input": texts}
    if options.encoding != "none":
        body["encoding_format"] = options.encoding
    if options.send_dimensions:
        body["dimensions"] = options.dimension
    return msgspec.json.encode(body)


def answer_limit_bytes(texts: int, dimension: int) -> int:
    """Return how long an answer with `texts` vectors can be."""
    return _REST_BYTES + texts * (_ITEM_BYTES + dimension * _NUMBER_BYTES)


def decode(body: bytes, texts: int, dimension: int) -> Embeddings:
    """Return what `body` holds, in the order of the texts. Raises Malformed, WrongDimension."""
    try:
        answer = _ANSWER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"its answer is none: {error}") from None
    if len(answer.data) != texts:
        raise Malformed(f"it sent {len(answer.data)} vectors for {texts} texts")
    rows = [_numbers(item.embedding) for item in _ordered(answer.data)]
    for row in rows:
        if len(row) != dimension:
            raise WrongDimension(len(row))
    return Embeddings(_unit(np.stack(rows)), _tokens(answer.usage))


def reason(body: bytes) -> str:
    """Return a service's own words in the body of an error, on one line; it may hold a key."""
    try:
        told = _ANYTHING.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return " ".join(body.decode(errors="replace").split())
    for name in ("error", "message", "detail"):
        if isinstance(told, dict) and name in told:
            told = told[name]
    words = told if isinstance(told, str) else msgspec.json.encode(told).decode()
    return " ".join(words.split())


def _ordered(items: list[_Item]) -> list[_Item]:
    indexes = [item.index for item in items if item.index is not None]
    if not indexes:
        return items
    if sorted(indexes) != list(range(len(items))):
        raise Malformed(f"its vectors have the indexes {indexes[:8]}, which are not those of {len(items)} texts")
    ordered = items.copy()
    for item, index in zip(items, indexes, strict=True):
        ordered[index] = item
    return ordered


def _numbers(embedding: str | list[float]) -> npt.NDArray[np.float64]:
    if isinstance(embedding, list):
        return np.array(embedding, np.float64)
    try:
        raw = base64.b64decode(embedding, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed(f"its vector is no base64: {error}") from None
    if len(raw) % _FLOAT32_BYTES:
        raise Malformed(f"its vector has {len(raw)} bytes, no whole number of float32")
    with np.errstate(invalid="ignore"):
        return np.frombuffer(raw, "<f4").astype(np.float64)


def _unit(rows: npt.NDArray[np.float64]) -> list[Vector | None]:
    if not np.isfinite(rows).all():
        raise Malformed("its vectors have numbers that are not finite")
    # By the largest number first: squares of very large and very small ones leave float64.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(largest, largest, 1.0)
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, np.newaxis]
    unit = (rows / np.where(norms, norms, 1.0)).astype(np.float32)
    # Copies, so that one vector that is kept doesn't keep the others.
    return [row.copy() if any_ else None for row, any_ in zip(unit, largest[:, 0], strict=True)]


def _tokens(usage: object) -> int | None:
    if not isinstance(usage, dict):
        return None
    for name in ("total_tokens", "prompt_tokens"):
        told = usage.get(name)
        if isinstance(told, int) and not isinstance(told, bool) and told > 0:
            return told
    return None

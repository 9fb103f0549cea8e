from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import HotindexError
from gateway.protocol import checks, messages
from gateway.protocol.codec import JSON, MSGPACK, Codec, Rejected

VECTOR = [1.0, 2.0, 0.5]
VECTOR_BYTES = b"\x00\x00\x80?\x00\x00\x00@\x00\x00\x00?"


def rejected(codec: Codec, data: bytes) -> HotindexError:
    with pytest.raises(Rejected) as raised:
        codec.command(data)
    return raised.value.error


def packed(**message: Any) -> bytes:
    data: bytes = msgpack.packb(message)
    return data


def dumped(**message: Any) -> bytes:
    return json.dumps(message).encode()


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (JSON, dumped(action="upsert", id="a", vector=VECTOR)),
        (JSON, dumped(action="upsert", id="a", vector="AACAPwAAAEAAAAA/")),
        (JSON, dumped(type="upsert", id="a", vector=VECTOR, unknown_field={"x": [1]})),
        (MSGPACK, packed(action="upsert", id="a", vector=VECTOR)),
        (MSGPACK, packed(action="upsert", id="a", vector=VECTOR_BYTES)),
    ],
)
def test_a_vector_comes_in_any_of_its_forms(codec: Codec, data: bytes) -> None:
    command = codec.command(data)
    assert isinstance(command, messages.Upsert)
    assert command.vector in (VECTOR, VECTOR_BYTES)


def test_action_goes_before_type() -> None:
    assert isinstance(JSON.command(dumped(action="ping", type="upsert")), messages.Ping)


@pytest.mark.parametrize(
    ("codec", "data", "code", "words"),
    [
        (JSON, b"{", "invalid_message", "Invalid JSON"),
        (JSON, b"", "invalid_message", "Invalid JSON"),
        (JSON, b"\xff\xfe", "invalid_message", "Invalid JSON"),
        (JSON, b'{"action":"ping","x":"\xff"', "invalid_message", "Invalid JSON"),
        (JSON, b'{"action":"get","id":"\xff"}', "invalid_message", "Invalid JSON"),
        (JSON, b'{"action":"get","id":"\\ud800"}', "invalid_message", "Invalid JSON"),
        (JSON, b'{"action":"upsert","id":"a","vector":[NaN]}', "invalid_message", "Invalid JSON"),
        (JSON, b"[" * 100_000, "too_large", "nested"),
        (JSON, b"[]", "invalid_message", "object"),
        (JSON, b"3", "invalid_message", "3"),
        (JSON, b"{}", "invalid_message", "action"),
        (JSON, dumped(action=5), "invalid_message", "5"),
        (JSON, dumped(action="fly"), "unknown_action", "'fly'"),
        (JSON, dumped(action="get"), "invalid_message", "id is missing"),
        (JSON, dumped(action="get", id=7), "invalid_message", "id is 7"),
        (JSON, dumped(action="get", id="a", ref=1.5), "invalid_message", "ref"),
        (JSON, dumped(action="get", id="a", ref=True), "invalid_message", "ref"),
        (JSON, dumped(action="search", k="ten"), "invalid_message", "k is 'ten'"),
        (JSON, dumped(action="search", k=1.5), "invalid_message", "k is 1.5"),
        (JSON, dumped(action="search", vector=[1, None]), "invalid_vector", "vector[1] is None"),
        (JSON, dumped(action="search", vector=["a"]), "invalid_vector", "vector[0] is 'a'"),
        (JSON, dumped(action="search", vector="not base64"), "invalid_vector", "vector"),
        (JSON, dumped(action="search", vector={"a": 1}), "invalid_vector", "vector"),
        (JSON, b'{"action":"search","vector":[1e999]}', "invalid_vector", "vector[0]"),
        (JSON, dumped(action="search", filter=[1]), "invalid_filter", "filter is [1]"),
        (JSON, dumped(action="upsert", documents=[{"id": "a", "vector": [None]}]), "invalid_vector", "documents[0]"),
        (JSON, dumped(action="upsert", documents=[{}]), "invalid_message", "documents[0].id is missing"),
        (JSON, dumped(action="upsert", id="a", metadata=[1]), "invalid_message", "metadata is [1]"),
        (JSON, dumped(action="upsert", id="a", priority=7), "invalid_argument", "priority is 7: known are 0, 1, 2"),
        (
            JSON,
            dumped(action="subscribe", include=["all"]),
            "invalid_argument",
            "include[0] is 'all': known are content, vector",
        ),
        (JSON, dumped(action="user_interaction", user_id="u", item_id="a"), "invalid_message", "type is missing"),
        (MSGPACK, b"\xc1", "invalid_message", "Invalid MessagePack"),
        (MSGPACK, b"", "invalid_message", "Invalid MessagePack"),
        (MSGPACK, packed(action="get", id="a")[:-1], "invalid_message", "Invalid MessagePack"),
        (MSGPACK, b"\x82\xa6action\xa3get\xa2id\xa1\xff", "invalid_message", "Invalid MessagePack"),
        (MSGPACK, packed(action="upsert", id="a", vector="text"), "invalid_vector", "vector is 'text'"),
        (MSGPACK, packed(action="upsert", id="a", metadata={1: 2}), "invalid_message", "metadata"),
        (MSGPACK, b"\x91" * 100_000, "too_large", "nested"),
    ],
)
def test_what_is_no_command_is_told_by_code_field_and_value(codec: Codec, data: bytes, code: str, words: str) -> None:
    error = rejected(codec, data)
    assert (error.code, words in error.message) == (code, True), error.message


def test_the_ref_comes_back_even_where_the_rest_is_wrong() -> None:
    with pytest.raises(Rejected) as raised:
        JSON.command(dumped(action="get", id=7, ref="r1"))
    assert raised.value.ref == "r1"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_command_or_rejected(data: bytes) -> None:
    for codec in (JSON, MSGPACK):
        with contextlib.suppress(Rejected):
            assert isinstance(codec.command(data), messages.Command)


WIRE_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "é", "AACAPw==", "content"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "id"]), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    ["collection", "id", "ids", "vector", "content", "metadata", "documents", "k", "filter", "include", "since", "ref"]
)


@given(st.sampled_from(list(messages.COMMANDS)), st.dictionaries(FIELDS, WIRE_VALUES, max_size=4))
def test_any_field_may_hold_anything(action: str, fields: dict[str, Any]) -> None:
    """A message becomes a command or a rejection with one of the contract's codes; nothing else."""
    with contextlib.suppress(Rejected):
        command = JSON.command(json.dumps({"action": action, **fields}).encode())
        assert isinstance(command, messages.COMMANDS[action])


@pytest.mark.parametrize(
    "value",
    [
        {"a": b"bytes"},
        {"a": math.nan},
        {"a": [math.inf]},
        {"a": 2**63},
        {"a": {"b": -(2**63) - 1}},
        {"a": "nul\0"},
        {"nul\0": 1},
        {"a": {1: 2}},
        {"a": {"b\0": 2}},
    ],
)
def test_metadata_that_is_no_json_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(HotindexError) as raised:
        checks.metadata(value)
    assert raised.value.code == "invalid_argument"


def test_metadata_depth_is_bounded() -> None:
    value: dict[str, Any] = {}
    for _ in range(checks.MAX_METADATA_DEPTH + 2):
        value = {"a": [value]}
    with pytest.raises(HotindexError, match="deep"):
        checks.metadata(value)


@pytest.mark.parametrize("name", ["a", "A_b-c.d", "_x", "0", "a" * 128])
def test_collection_names_that_are_fine(name: str) -> None:
    checks.collection_name(name)


@pytest.mark.parametrize("name", ["", "../x", ".", "..", "-a", ".a", "a/b", "a b", "é", "a\n", "a" * 129, "a\0"])
def test_collection_names_that_are_not(name: str) -> None:
    with pytest.raises(HotindexError) as raised:
        checks.collection_name(name)
    assert (raised.value.code, raised.value.field) == ("invalid_argument", "collection")

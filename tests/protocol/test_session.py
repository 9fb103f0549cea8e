from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import Conflict, Internal, InvalidArgument, Overloaded
from gateway.protocol import messages
from gateway.protocol.codec import JSON
from gateway.protocol.framing import frame
from gateway.protocol.session import Limits, Perform, Reply, Session


def session(**limits: int) -> Session:
    opened = Session("c1", JSON, Limits(**limits), lambda: 1_763_632_800_123_456)
    opened.open("n1", 25.0)
    return opened


def send(to: Session, **message: Any) -> Reply | Perform:
    return to.receive(json.dumps(message).encode())


def test_the_greeting() -> None:
    greeting = json.loads(Session("c1", JSON, Limits(), lambda: 0).open("n1", 25.0))
    assert greeting == {
        "type": "connected",
        "client_id": "c1",
        "message": "Connected to hotindex",
        "node": "n1",
        "protocol": 1,
        "ping_interval_s": 25.0,
    }


def test_a_ping_is_answered_at_once() -> None:
    reply = send(session(), action="ping", ref=5)
    assert isinstance(reply, Reply)
    assert json.loads(reply.data) == {"type": "pong", "ref": 5, "timestamp": "2025-11-20T10:00:00.123456+00:00"}


def test_a_command_is_to_be_performed_and_its_reply_carries_the_ref() -> None:
    opened = session()
    step = send(opened, action="get", id="a", ref="r")
    assert isinstance(step, Perform)
    assert json.loads(opened.answer(step, messages.Unsubscribed(collection="x"))) == {
        "type": "unsubscribed",
        "ref": "r",
        "collection": "x",
    }


@pytest.mark.parametrize(
    ("error", "extra"),
    [
        (InvalidArgument("k is 0", field="k"), {"retryable": False, "field": "k"}),
        (Conflict("no", version=7, field="if_version"), {"retryable": False, "version": 7, "field": "if_version"}),
        (Overloaded("later", retry_after_s=1.5), {"retryable": True, "retry_after_s": 1.5}),
        (Internal("abc"), {"retryable": False, "id": "abc"}),
    ],
)
def test_an_error_carries_its_facts(error: Any, extra: dict[str, Any]) -> None:
    opened = session()
    step = send(opened, action="get", id="a", ref=1)
    assert isinstance(step, Perform)
    expected = {"type": "error", "ref": 1, "code": error.code, "message": error.message, **extra}
    assert json.loads(opened.fail(step, error)) == expected


def test_a_session_is_full_until_something_lands() -> None:
    opened = session(in_flight=2)
    first, second = send(opened, action="get", id="a"), send(opened, action="get", id="b")
    assert opened.full
    assert isinstance(first, Perform)
    opened.answer(first, messages.Unsubscribed(collection="x"))
    assert not opened.full
    assert isinstance(second, Perform)


def test_a_session_is_full_by_bytes() -> None:
    opened = session(in_flight_bytes=100)
    send(opened, action="get", id="a" * 100)
    assert opened.full


def test_messages_over_the_limit_are_refused_unread() -> None:
    reply = send(session(message_bytes=1024), action="get", id="a" * 2000)
    assert isinstance(reply, Reply)
    assert json.loads(reply.data)["code"] == "too_large"


def test_rooms_are_bounded() -> None:
    opened = session(rooms=2)
    for name in ("a", "b", "a"):
        opened.enter(name)
    with pytest.raises(InvalidArgument, match="limit is 2"):
        opened.enter("c")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_frames_have_the_lengths_of_the_rfc(size: int) -> None:
    from websockets.frames import Frame, Opcode

    payload = b"x" * size
    assert frame(payload, binary=False) == Frame(Opcode.TEXT, payload).serialize(mask=False)
    assert frame(payload, binary=True) == Frame(Opcode.BINARY, payload).serialize(mask=False)


def test_commands_beyond_the_rate_are_refused_until_tokens_have_grown() -> None:
    now = 0
    limited = Session("c1", JSON, Limits(commands_per_s=2), lambda: now)
    limited.open("n1", 25.0)

    def ask() -> dict[str, Any]:
        reply = send(limited, action="ping", ref=1)
        assert isinstance(reply, Reply)
        answer: dict[str, Any] = json.loads(reply.data)
        return answer

    assert [ask()["type"] for _ in range(3)] == ["pong", "pong", "error"]
    refused = ask()
    assert (refused["code"], refused["retryable"], refused["retry_after_s"]) == ("rate_limited", True, 0.5)
    now += 500_000
    assert [ask()["type"] for _ in range(2)] == ["pong", "error"]
    now += 60_000_000
    assert [ask()["type"] for _ in range(3)] == ["pong", "pong", "error"], "a second's worth at most"

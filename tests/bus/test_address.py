"""The setting redis_url, and what is said of one that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.bus.address import Address, Credentials, Kind, Node, Tls, parse
from gateway.bus.link import Link
from gateway.errors import StartupError


def test_one_server() -> None:
    assert parse("redis://localhost") == Address(Kind.SINGLE, (Node("localhost", 6379),), Credentials(), 0, None)
    assert parse("redis://me:p%40ss@[::1]:7000/3") == Address(
        Kind.SINGLE, (Node("::1", 7000),), Credentials("me", "p@ss"), 3, None
    )
    assert parse("redis://:secret@host").credentials == Credentials(None, "secret")


def test_tls() -> None:
    assert parse("rediss://host").tls == Tls()
    url = "rediss+cluster://a,b:1?ssl_ca_certs=ca&ssl_certfile=c&ssl_keyfile=k&ssl_cert_reqs=none&ssl_check_hostname=false"
    assert parse(url) == Address(
        Kind.CLUSTER,
        (Node("a", 6379), Node("b", 1)),
        Credentials(),
        0,
        Tls("ca", "c", "k", "none", check_hostname=False),
    )


def test_sentinel() -> None:
    assert parse("redis+sentinel://u:p@a,b:2/service/4?sentinel_password=s") == Address(
        Kind.SENTINEL,
        (Node("a", 26379), Node("b", 2)),
        Credentials("u", "p"),
        4,
        None,
        "service",
        Credentials(None, "s"),
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "has to begin with"),
        ("http://host", "has to begin with"),
        ("redis+raft://host", "redis+raft is unknown"),
        ("redis://", "a host is missing"),
        ("redis://host:port", "Port"),
        ("redis://host:99999", "Port"),
        ("redis://a,b", "several hosts"),
        ("redis://host/one", "number of a db"),
        ("redis+cluster://host/1", "only db 0"),
        ("redis+sentinel://host", "service"),
        ("redis://host?ssl_ca_certs=x", "ssl_ca_certs is unknown"),
        ("rediss://host?ssl_cert_reqs=perhaps", "required or optional or none"),
        ("rediss://host?timeout=1", "timeout is unknown"),
    ],
)
def test_a_url_that_is_none_is_named_with_its_reason(url: str, reason: str) -> None:
    with pytest.raises(StartupError) as raised:
        Link(url, timeout_s=1)
    assert "redis_url" in str(raised.value)
    assert repr(url) in str(raised.value)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:hunter2@host:port",
        "redis://:hun@ter2@host:port",
        "redis://me:hun/ter2@host",
        "redis:me:hunter2@host",
        "hunter2@host",
        "redis://me:hunter2@host?password=hunter2",
        "redis+sentinel://host/s/x?sentinel_password=hunter2",
    ],
)
def test_passwords_are_told_to_nobody(url: str) -> None:
    with pytest.raises(StartupError) as raised:
        parse(url)
    assert "ter2" not in str(raised.value)
    assert "***" in str(raised.value)
    assert "hunter2" not in repr(parse("redis://:hunter2@host"))


def test_tls_files_are_read_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("missing", "empty"):
        with pytest.raises(StartupError, match=name):
            Link(f"rediss://host?ssl_ca_certs={tmp_path / name}", timeout_s=1)

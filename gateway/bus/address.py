"""Where Redis is, read from the setting redis_url.

    redis://[user:password@]host[:port][/db]                    rediss:// with TLS
    redis+cluster://[user:password@]host[:port],…               rediss+cluster://
    redis+sentinel://[user:password@]host[:port],…/service[/db] rediss+sentinel://

Parameters, after a question mark: with TLS ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_cert_reqs (required, optional,
none) and ssl_check_hostname (true, false), as redis-py names them, for sentinels too; with Sentinel sentinel_username and
sentinel_password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from gateway.errors import StartupError

_PORT, _SENTINEL_PORT = 6379, 26379
_TLS_PARAMETERS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"})
_SENTINEL_PARAMETERS = frozenset({"sentinel_username", "sentinel_password"})
_T = TypeVar("_T")


class Kind(Enum):
    SINGLE = "redis"
    CLUSTER = "redis+cluster"
    SENTINEL = "redis+sentinel"


@dataclass(frozen=True, slots=True)
class Node:
    """A server's address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Credentials:
    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Tls:
    """Files are PEM; without `ca_certs` the system's authorities count."""

    ca_certs: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    cert_reqs: str = "required"
    check_hostname: bool = True


@dataclass(frozen=True, slots=True)
class Address:
    """`nodes` are the servers to begin with: with Sentinel these are the sentinels."""

    kind: Kind
    nodes: tuple[Node, ...]
    credentials: Credentials
    db: int
    tls: Tls | None
    service: str = ""
    sentinel_credentials: Credentials = Credentials()


def masked(url: str) -> str:
    """Return the URL without its passwords, however malformed it is."""
    if "@" in url:
        head, _, tail = url.rpartition("@")
        scheme = re.match(r"rediss?(\+cluster|\+sentinel)?://", head)
        url = f"{scheme[0] if scheme else ''}***@{tail}"
    return re.sub(r"(password=)[^&]*", r"\1***", url)


def parse(url: str) -> Address:
    """Raises StartupError, which names the setting and the value, without passwords."""
    try:
        return _parse(urlsplit(url))
    except ValueError as error:
        raise StartupError(f"redis_url: {masked(url)!r} is no Redis URL: {error}") from None


def _parse(url: SplitResult) -> Address:
    scheme, plus, variant = url.scheme.partition("+")
    if scheme not in ("redis", "rediss"):
        raise ValueError("it has to begin with redis:// or rediss://, or with +cluster or +sentinel before the colon")
    kind = _one_of(Kind, f"redis{plus}{variant}", "the scheme")
    login, _, hosts = url.netloc.rpartition("@")
    default_port = _SENTINEL_PORT if kind is Kind.SENTINEL else _PORT
    nodes = tuple(_node(part, default_port) for part in hosts.split(","))
    if kind is Kind.SINGLE and len(nodes) > 1:
        raise ValueError("several hosts need redis+cluster:// or redis+sentinel://")
    parts = [part for part in url.path.split("/") if part]
    service = parts.pop(0) if kind is Kind.SENTINEL and parts else ""
    if kind is Kind.SENTINEL and not service:
        raise ValueError("the path has to name the service that the sentinels watch")
    db = _db(parts)
    if kind is Kind.CLUSTER and db:
        raise ValueError("a cluster has only db 0")
    parameters = _parameters(url.query, kind, tls=scheme == "rediss")
    username, _, password = login.partition(":")
    return Address(
        kind,
        nodes,
        Credentials(unquote(username) or None, unquote(password) or None),
        db,
        _tls(parameters) if scheme == "rediss" else None,
        unquote(service),
        Credentials(parameters.get("sentinel_username"), parameters.get("sentinel_password")),
    )


def _node(text: str, default_port: int) -> Node:
    host = urlsplit(f"//{text}")
    if not host.hostname:
        raise ValueError("a host is missing")
    return Node(host.hostname, default_port if host.port is None else host.port)


def _db(parts: list[str]) -> int:
    if not parts:
        return 0
    if len(parts) > 1 or not re.fullmatch(r"\d{1,5}", parts[0]):
        raise ValueError("the end of the path has to be the number of a db")
    return int(parts[0])


def _parameters(query: str, kind: Kind, *, tls: bool) -> dict[str, str]:
    known = (_TLS_PARAMETERS if tls else frozenset()) | (_SENTINEL_PARAMETERS if kind is Kind.SENTINEL else frozenset())
    parameters = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    if unknown := parameters.keys() - known:
        raise ValueError(f"parameter {min(unknown)} is unknown here")
    return parameters


def _tls(parameters: dict[str, str]) -> Tls:
    return Tls(
        parameters.get("ssl_ca_certs"),
        parameters.get("ssl_certfile"),
        parameters.get("ssl_keyfile"),
        _choice(parameters, "ssl_cert_reqs", {name: name for name in ("required", "optional", "none")}, "required"),
        _choice(parameters, "ssl_check_hostname", {"true": True, "false": False}, True),
    )


def _choice(parameters: dict[str, str], name: str, choices: dict[str, _T], default: _T) -> _T:
    if name not in parameters:
        return default
    if parameters[name] not in choices:
        raise ValueError(f"{name} has to be {' or '.join(choices)}")
    return choices[parameters[name]]


def _one_of(kinds: type[Kind], value: str, what: str) -> Kind:
    try:
        return kinds(value)
    except ValueError:
        raise ValueError(f"{what} {value} is unknown") from None

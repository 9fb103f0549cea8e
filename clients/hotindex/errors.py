"""What the client raises.

HotindexError             code, message, retryable
├── ConnectionLost        connection_lost     the gateway can't be reached, or went away before it answered
├── RequestTimeout        timeout             no answer in time
├── BufferFull            buffer_full         a subscription's consumer was too slow, and it was to fail then
├── InvalidFile           invalid_file        a replica's file is damaged, or of something else
└── ServerError           any other           the gateway's answer is an error; `field` names the value at fault
    ├── Conflict          conflict            `version` is the one the document has
    ├── NotFound          not_found
    ├── InvalidRequest    invalid_*, unknown_action, too_large
    ├── Unavailable       rate_limited, overloaded, embedding_unavailable, storage_unavailable; `retry_after_s`
    └── Denied            unauthorized, forbidden

A retryable error changed nothing, or, for ConnectionLost and RequestTimeout of a write, may have: see `Client.upsert`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class HotindexError(Exception):
    """The root of what the client raises."""

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable


class ConnectionLost(HotindexError):
    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__("connection_lost", message, retryable=retryable)


class RequestTimeout(HotindexError):
    def __init__(self, message: str) -> None:
        super().__init__("timeout", message, retryable=True)


class BufferFull(HotindexError):
    """More updates than the subscription holds waited for its consumer, and it was to fail then."""

    def __init__(self, message: str) -> None:
        super().__init__("buffer_full", message, retryable=True)


class InvalidFile(HotindexError):
    """A replica's file is damaged, or of something else, or can't be where it is to be."""

    def __init__(self, message: str) -> None:
        super().__init__("invalid_file", message, retryable=False)


class ServerError(HotindexError):
    def __init__(self, code: str, message: str, *, retryable: bool, field: str | None = None) -> None:
        super().__init__(code, message, retryable=retryable)
        self.field = field


class Conflict(ServerError):
    version: int = 0


class NotFound(ServerError):
    pass


class InvalidRequest(ServerError):
    pass


class Unavailable(ServerError):
    retry_after_s: float | None = None


class Denied(ServerError):
    pass


_KINDS: dict[str, type[ServerError]] = {
    "conflict": Conflict,
    "not_found": NotFound,
    "rate_limited": Unavailable,
    "overloaded": Unavailable,
    "embedding_unavailable": Unavailable,
    "storage_unavailable": Unavailable,
    "unauthorized": Denied,
    "forbidden": Denied,
    **dict.fromkeys(
        (
            "invalid_message",
            "unknown_action",
            "invalid_vector",
            "invalid_filter",
            "invalid_argument",
            "too_large",
        ),
        InvalidRequest,
    ),
}


def from_message(message: Mapping[str, Any]) -> ServerError:
    """Return the error a gateway's `error` message stands for."""
    code = message["code"]
    error = _KINDS.get(code, ServerError)(
        code, message["message"], retryable=message["retryable"], field=message.get("field")
    )
    if isinstance(error, Conflict):
        error.version = message["version"]
    if isinstance(error, Unavailable):
        error.retry_after_s = message.get("retry_after_s")
    return error

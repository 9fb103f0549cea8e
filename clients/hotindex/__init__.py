"""The Python client of hotindex."""

from typing import TYPE_CHECKING, Any

from hotindex import sync
from hotindex.backoff import Backoff
from hotindex.client import Client
from hotindex.errors import (
    BufferFull,
    Conflict,
    ConnectionLost,
    Denied,
    HotindexError,
    InvalidFile,
    InvalidRequest,
    NotFound,
    RequestTimeout,
    ServerError,
    Unavailable,
)
from hotindex.listener import Listener
from hotindex.recommendations import Recommendations
from hotindex.subscription import Subscription
from hotindex.transaction import Transaction
from hotindex.types import (
    Ack,
    CaughtUp,
    Change,
    Document,
    Event,
    Hit,
    Match,
    Recommendation,
    RecommendationUpdate,
    Reconnected,
    Reset,
    Results,
    StoredDocument,
    Update,
    WriteResult,
)
from hotindex.watch import Watch

if TYPE_CHECKING:
    from hotindex.replica import Replica

__all__ = [
    "Ack",
    "Backoff",
    "BufferFull",
    "CaughtUp",
    "Change",
    "Client",
    "Conflict",
    "ConnectionLost",
    "Denied",
    "Document",
    "Event",
    "Hit",
    "HotindexError",
    "InvalidFile",
    "InvalidRequest",
    "Listener",
    "Match",
    "NotFound",
    "Recommendation",
    "RecommendationUpdate",
    "Recommendations",
    "Reconnected",
    "Replica",
    "RequestTimeout",
    "Reset",
    "Results",
    "ServerError",
    "StoredDocument",
    "Subscription",
    "Transaction",
    "Unavailable",
    "Update",
    "Watch",
    "WriteResult",
    "sync",
]


def __getattr__(name: str) -> Any:
    """Import the replica when it is used: it needs numpy, and the rest doesn't."""
    if name != "Replica":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hotindex.replica import Replica  # noqa: PLC0415

    return Replica

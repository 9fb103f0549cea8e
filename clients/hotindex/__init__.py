"""The Python client of hotindex."""

from hotindex import sync
from hotindex.backoff import Backoff
from hotindex.client import Client
from hotindex.errors import (
    Conflict,
    ConnectionLost,
    Denied,
    HotindexError,
    InvalidRequest,
    NotFound,
    RequestTimeout,
    ServerError,
    Unavailable,
)
from hotindex.subscription import Subscription
from hotindex.types import Ack, Document, Hit, Reset, Results, StoredDocument, Update, WriteResult

__all__ = [
    "Ack",
    "Backoff",
    "Client",
    "Conflict",
    "ConnectionLost",
    "Denied",
    "Document",
    "Hit",
    "HotindexError",
    "InvalidRequest",
    "NotFound",
    "RequestTimeout",
    "Reset",
    "Results",
    "ServerError",
    "StoredDocument",
    "Subscription",
    "Unavailable",
    "Update",
    "WriteResult",
    "sync",
]

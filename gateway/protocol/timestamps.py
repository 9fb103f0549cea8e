"""Times as they stand on the wire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def iso(microseconds: int) -> str:
    """Return microseconds since the epoch in ISO 8601, UTC, always with six decimals."""
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds")

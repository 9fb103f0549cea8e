"""Faults of ours: logged once with their traceback, told to the client by an id that stands in the log."""

from __future__ import annotations

import secrets

import structlog

from gateway.errors import Internal

log = structlog.get_logger(__name__)


def internal(error: BaseException, **context: object) -> Internal:
    """Log an unexpected `error`, and return what to tell the client of it."""
    incident = secrets.token_hex(8)
    log.error("internal_error", incident=incident, exc_info=error, **context)
    return Internal(incident)

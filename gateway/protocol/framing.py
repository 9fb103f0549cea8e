"""What is sent to many is framed once, and written to every socket as it is."""

from __future__ import annotations

import struct

_TEXT, _BINARY, _PING = 0x81, 0x82, 0x89
_BYTE_LIMIT, _SHORT_LIMIT = 126, 1 << 16

PING = bytes((_PING, 0))
SSE_PING = b": ping\n\n"
"""A comment, which clients of Server-Sent Events pass over."""


RELAY_PING = b"\0\0\0\0"
"""An empty frame for another node."""


def frame(payload: bytes, *, binary: bool) -> bytes:
    """Return an unmasked, unfragmented data frame (RFC 6455, section 5.2), as a server sends it."""
    first = _BINARY if binary else _TEXT
    size = len(payload)
    if size < _BYTE_LIMIT:
        return bytes((first, size)) + payload
    if size < _SHORT_LIMIT:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


def server_sent_event(payload: bytes, position: int | None) -> bytes:
    """Return JSON as one Server-Sent Event (HTML, section 9.2); `position` is what a client resumes from after it."""
    if position is None:
        return b"data: %b\n\n" % payload
    return b"id: %d\ndata: %b\n\n" % (position, payload)


def relay_frame(payload: bytes) -> bytes:
    """Return a payload for another node, its length before it."""
    return struct.pack("!I", len(payload)) + payload

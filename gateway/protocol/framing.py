"""WebSocket frames for what is sent to many: built once, written to every socket as they are."""

from __future__ import annotations

import struct

_TEXT, _BINARY, _PING = 0x81, 0x82, 0x89
_BYTE_LIMIT, _SHORT_LIMIT = 126, 1 << 16

PING = bytes((_PING, 0))


def frame(payload: bytes, *, binary: bool) -> bytes:
    """Return an unmasked, unfragmented data frame (RFC 6455, section 5.2), as a server sends it."""
    first = _BINARY if binary else _TEXT
    size = len(payload)
    if size < _BYTE_LIMIT:
        return bytes((first, size)) + payload
    if size < _SHORT_LIMIT:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload

"""What the kernel holds for clients that don't read."""

from __future__ import annotations

import asyncio
import socket

SOCKET_BUFFER_BYTES = 128 << 10
"""What the kernel is asked to hold for one connection; it takes twice that. By itself it would go up to megabytes."""


def bounded(transport: asyncio.BaseTransport) -> socket.socket:
    """Bound the buffer of a transport's socket; return that."""
    endpoint: socket.socket = transport.get_extra_info("socket")
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return endpoint

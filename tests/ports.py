"""Ports for servers that are started again on the same one."""

from __future__ import annotations

import itertools
import os
import socket

HOST = "127.0.0.1"
_EACH = 5_000
# Below those that the system gives to connections, which would take them while a server is down. Tests run in up to four
# processes, each of which has a range of its own.
_FIRST = 10_000 + _EACH * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4)
_numbers = itertools.count(os.getpid() * 41)


def free_port() -> int:
    """Return a port that nobody listens at, another one each time."""
    for number in itertools.islice(_numbers, _EACH):
        port = _FIRST + number % _EACH
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise OSError(f"no port from {_FIRST} to {_FIRST + _EACH} is free")

"""Subscribers in a process of their own, that count and check every byte they get.

Subscribers with the same command must get the same stream: whoever is ahead extends what is known of it, the others are
compared with that. When the stream holds `until`, and all have all of it, a line of JSON tells the times.
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import sys
import time
from array import array
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import numpy as np

from bench.sockets import client_frame, frames

_RECEIVE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Task:
    """What an audience is to do: `commands` go round among the subscribers; None where being connected is enough."""

    url: str
    subscribers: int
    until: str
    commands: list[str] | None = None
    stamp: str = '"t":'
    """What stands before the time an event was sent at, in nanoseconds of the monotonic clock."""
    first: str = ""
    """What stands in the first event whose latency counts."""


@dataclass(slots=True)
class Outcome:
    """Times in seconds of the monotonic clock; latencies in milliseconds, of every event at every subscriber."""

    started: float
    ready: float
    first: float = 0.0
    done: float = 0.0
    deliveries: int = 0
    events: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    longest_ms: float = 0.0


@dataclass(slots=True)
class _Stream:
    """What all subscribers with one command get."""

    data: bytearray = field(default_factory=bytearray)
    complete: bool = False


class _Member:
    __slots__ = ("arrivals", "buffer", "command", "offset", "ready", "socket", "stream", "upgraded")

    def __init__(self, connection: socket.socket, command: str | None, stream: _Stream) -> None:
        self.socket = connection
        self.command = command
        self.stream = stream
        self.buffer = b""
        self.upgraded = False
        self.ready = False
        self.offset = 0
        self.arrivals = array("d")
        """Times and offsets, in turn."""


def run(task: Task) -> Outcome:
    """Connect, tell on standard output, take the stream to its end."""
    started = time.monotonic()
    members = _connect(task)
    poll = select.epoll()
    for descriptor in members:
        poll.register(descriptor, select.EPOLLIN)
    missing = len(members)
    while missing:
        for descriptor, _ in poll.poll():
            member = members[descriptor]
            if not member.ready:
                _begin(member)
                missing -= member.ready
    outcome = Outcome(started, time.monotonic())
    print("ready", flush=True)
    _follow(task, members, poll, outcome)
    _evaluate(task, members, outcome)
    return outcome


def _connect(task: Task) -> dict[int, _Member]:
    address = urlsplit(task.url)
    commands: list[str | None] = [*task.commands] if task.commands else [None]
    streams = {command: _Stream() for command in commands}
    key = base64.b64encode(os.urandom(16)).decode()
    request = (
        f"GET / HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    connections = []
    for _ in range(task.subscribers):
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex((address.hostname, address.port))
        connections.append(connection)
    members = {}
    for i, connection in enumerate(connections):
        select.select([], [connection], []) if connection.fileno() < 1000 else _wait_writable(connection)
        connection.sendall(request)
        command = commands[i % len(commands)]
        members[connection.fileno()] = _Member(connection, command, streams[command])
    return members


def _wait_writable(connection: socket.socket) -> None:
    poll = select.poll()
    poll.register(connection, select.POLLOUT)
    poll.poll()


def _begin(member: _Member) -> None:
    """Take the handshake's answer, then the subscription's."""
    member.buffer += member.socket.recv(_RECEIVE_BYTES)
    if not member.upgraded:
        head, end, rest = member.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        assert b" 101 " in head.split(b"\r\n")[0], head
        member.upgraded = True
        member.buffer = rest
        if member.command is None:
            member.ready = True
        else:
            member.socket.sendall(client_frame(member.command.encode(), binary=False))
    if member.command is not None:
        for payload, end_at in frames(member.buffer):
            if b'"subscribed"' in payload:
                member.ready = True
                member.buffer = member.buffer[end_at:]
                break
    if member.ready and member.buffer:
        _take(member, member.buffer)
        member.buffer = b""


def _take(member: _Member, data: bytes) -> None:
    known = member.stream.data
    end = member.offset + len(data)
    overlap = min(end, len(known)) - member.offset
    if known[member.offset : member.offset + overlap] != data[:overlap]:
        raise AssertionError(f"a subscriber got other bytes than another one, at {member.offset}: {data[:200]!r}")
    if end > len(known):
        known += data[overlap:]
    member.offset = end


def _follow(task: Task, members: dict[int, _Member], poll: select.epoll, outcome: Outcome) -> None:
    until = task.until.encode()
    unfinished = set(members)
    clock = time.monotonic
    while unfinished:
        for descriptor, _ in poll.poll():
            member = members[descriptor]
            data = member.socket.recv(_RECEIVE_BYTES)
            if not data:
                raise AssertionError("the server closed a connection")
            stream = member.stream
            before = len(stream.data)
            _take(member, data)
            member.arrivals.append(clock())
            member.arrivals.append(member.offset)
            if len(stream.data) > before and not stream.complete:
                stream.complete = until in stream.data[max(0, before - len(until)) :]
                if stream.complete:
                    whole = len(stream.data)
                    done = {d for d in unfinished if members[d].stream is stream and members[d].offset == whole}
                    unfinished -= done
            if stream.complete and member.offset == len(stream.data):
                unfinished.discard(descriptor)
    outcome.done = clock()


def _evaluate(task: Task, members: dict[int, _Member], outcome: Outcome) -> None:
    """Count deliveries; check that each stream's events come in order; compute latencies from the times they carry."""
    latencies = []
    seen = {}
    for member in members.values():
        stream = member.stream
        if id(stream) not in seen:
            seen[id(stream)] = _events(stream, task)
        ends, sent = seen[id(stream)]
        outcome.deliveries += len(ends)
        outcome.events = max(outcome.events, len(ends))
        pairs = np.frombuffer(member.arrivals, np.float64).reshape(-1, 2)
        if len(pairs) and len(ends):
            outcome.first = min(outcome.first or np.inf, float(pairs[0, 0]))
            at = np.searchsorted(pairs[:, 1], ends)
            counted = sent > 0
            latencies.append((pairs[at, 0] - sent)[counted])
    if latencies and any(map(len, latencies)):
        p50, p99, longest = np.percentile(np.concatenate(latencies) * 1e3, [50, 99, 100])
        outcome.p50_ms, outcome.p99_ms, outcome.longest_ms = float(p50), float(p99), float(longest)


def _events(stream: _Stream, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return for each event where its frame ends, and when it was sent (0 where that doesn't count)."""
    ends, sent = [], []
    last = -1
    counts = not task.first
    stamp = task.stamp.encode()
    for payload, end in frames(bytes(stream.data)):
        message = json.loads(payload)
        if message.get("type") != "index_update":
            continue
        for event in message.get("events") or [message["event"]]:
            assert event["index_version"] > last, "index_version grows"
            last = event["index_version"]
            counts = counts or task.first in event.get("document_id", "")
            ends.append(end)
            sent.append(event["metadata"].get("t", 0) / 1e9 if counts and stamp in payload else 0)
    return np.array(ends), np.array(sent)


def main() -> None:
    """Run the task on standard input."""
    print(json.dumps(asdict(run(Task(**json.loads(sys.stdin.readline()))))), flush=True)

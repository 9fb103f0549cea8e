"""A redis-server for a benchmark, a client of it that costs as little as possible, and what it says of itself."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import hiredis

from gateway.bus import scripts
from gateway.bus.agreement import Keys
from gateway.bus.link import Script

_HOST = "127.0.0.1"
_START_S = 10.0
_PAGE = 500
_PUBLISHING = "publish"
_IN_SCRIPTS = {
    name.lower()
    for script in vars(scripts).values()
    if isinstance(script, Script)
    for name in re.findall(r"redis\.call\('([A-Z]+)'", script.body)
} | {_PUBLISHING}


class RedisMissing(Exception):
    """There is no redis-server on the PATH."""


class RedisProcess:
    """`redis-server` on a free port, which keeps nothing on disk; a context manager that kills it."""

    def __init__(self, directory: Path) -> None:
        """Raises RedisMissing."""
        command = shutil.which("redis-server")
        if command is None:
            raise RedisMissing("redis-server is not on the PATH")
        said = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = said.partition("v=")[2].split()[0]
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            self.port: int = probe.getsockname()[1]
        flags = ["--bind", _HOST, "--port", str(self.port), "--dir", str(directory), "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([command, *flags], stdout=subprocess.DEVNULL, start_new_session=True)

    @property
    def url(self) -> str:
        return f"redis://{_HOST}:{self.port}"

    def __enter__(self) -> Self:
        """Wait until it listens. Raises RuntimeError if it ends instead, TimeoutError if it takes too long."""
        due = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection((_HOST, self.port), timeout=1.0).close()
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"redis-server ended with status {self.process.returncode}") from None
                if time.monotonic() > due:
                    self.kill()
                    raise TimeoutError(f"redis-server does not listen after {_START_S} s") from None
                time.sleep(0.01)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def packed(*args: bytes | str | int) -> bytes:
    """Return a command as it is sent."""
    command: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]  # its stub lets a command be one word long
    return command


class RedisSocket(asyncio.Protocol):
    """Parses replies in the transport's callback; what nobody asked for goes to `on_message`."""

    def __init__(self, on_message: Callable[[Any], None]) -> None:
        self._on_message = on_message
        self._reader = hiredis.Reader()
        self._asked: deque[asyncio.Future[Any]] = deque()
        self.transport: asyncio.Transport

    @classmethod
    async def connect(cls, redis: RedisProcess, on_message: Callable[[Any], None] = lambda _: None) -> RedisSocket:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(on_message), _HOST, redis.port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if not self._asked:
                self._on_message(reply)
                continue
            asked = self._asked.popleft()
            if isinstance(reply, Exception):
                asked.set_exception(reply)
            else:
                asked.set_result(reply)

    async def ask(self, *args: bytes | str | int) -> Any:
        """Send a command and return its reply. Raises hiredis.ReplyError."""
        asked = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self.send(packed(*args))
        return await asked

    def send(self, command: bytes) -> None:
        """Send what is packed already; the reply goes to `on_message`."""
        self.transport.write(command)


@dataclass(frozen=True, slots=True)
class Counts:
    """What Redis has counted: calls by command, those inside scripts included, and bytes from and to clients."""

    calls: Counter[str]
    bytes_in: int
    bytes_out: int

    @classmethod
    async def now(cls, connection: RedisSocket) -> Counts:
        calls: Counter[str] = Counter()
        for name, value in (await _info(connection, "commandstats")).items():
            calls[name.removeprefix("cmdstat_")] = int(value.partition("calls=")[2].partition(",")[0])
        stats = await _info(connection, "stats")
        return cls(calls, int(stats["total_net_input_bytes"]), int(stats["total_net_output_bytes"]))

    def since(self, before: Counts) -> Counts:
        return Counts(self.calls - before.calls, self.bytes_in - before.bytes_in, self.bytes_out - before.bytes_out)

    @property
    def sent(self) -> Counter[str]:
        """The calls that travelled. Those of the commands scripts call are theirs, with two exceptions, which nodes send
        too: PROPOSE publishes once for each XADD, and HEARTBEAT asks once for the TIME and for HGETALL.
        """
        travelled = Counter({name: count for name, count in self.calls.items() if name not in _IN_SCRIPTS})
        travelled[_PUBLISHING] = self.calls[_PUBLISHING] - self.calls["xadd"]
        travelled["hgetall"] = self.calls["hgetall"] - self.calls["time"]
        return +travelled


async def _info(connection: RedisSocket, section: str) -> dict[str, str]:
    lines: list[str] = (await connection.ask("INFO", section)).decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a collection takes in Redis: bytes, and what they hold."""

    log_bytes: int
    log_entries: int
    log_changes: int
    recent_bytes: int
    recent_keys: int

    @classmethod
    async def of(cls, connection: RedisSocket, keys: Keys) -> Stored:
        oldest, newest = [
            (await connection.ask(command, keys.log, *ends, "COUNT", 1))[0]
            for command, ends in (("XRANGE", "-+"), ("XREVRANGE", "+-"))
        ]
        first = int(oldest[1][1].split(b" ", 3)[2])
        last = int(newest[0].partition(b"-")[0])
        return cls(
            await connection.ask("MEMORY", "USAGE", keys.log, "SAMPLES", 0),
            await connection.ask("XLEN", keys.log),
            last - first + 1,
            await connection.ask("MEMORY", "USAGE", keys.recent, "SAMPLES", 0),
            await connection.ask("ZCARD", keys.recent),
        )


async def messages_after(connection: RedisSocket, keys: Keys, index_version: int) -> list[bytes]:
    """Return the messages of the stream after an index_version, which are those published too."""
    found: list[bytes] = []
    after = f"({index_version}-0"
    while page := await connection.ask("XRANGE", keys.log, after, "+", "COUNT", _PAGE):
        found += [message for _, (_, message) in page]
        after = f"({page[-1][0].decode()}"
    return found

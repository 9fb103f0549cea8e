"""A service's key: where it is read, and when again. It is in no message, log or repr."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from pathlib import Path

from gateway.embed.options import KeySource

COMMAND_S = 10.0
"""What a key_command may take."""

REDACTED = "[key]"

# What a field value of HTTP can hold (RFC 9110, section 5.5), without blanks, which no key has.
_KEY = re.compile(r"[\x21-\x7e]+")


class KeyMissing(Exception):
    """The source has no key. The message names the source, never what it holds."""


class Credentials:
    """The key of one service. Call on the event loop."""

    def __init__(self, source: KeySource | None) -> None:
        self._source = source
        self._key: str | None = None
        self._reading = asyncio.Lock()

    async def key(self) -> str | None:
        """Return the key, read at the first call; None where the service has none. Raises KeyMissing."""
        if self._source is not None and self._key is None:
            async with self._reading:
                if self._key is None:
                    self._key = await _read(self._source)
        return self._key

    async def renew(self, refused: str | None) -> bool:
        """Read the key again that was refused, and return whether it is another one now. Raises KeyMissing."""
        if self._source is None:
            return False
        async with self._reading:
            if self._key == refused:
                self._key = await _read(self._source)
            return self._key != refused


def redacted(text: str, key: str | None) -> str:
    return text.replace(key, REDACTED) if key else text


async def _read(source: KeySource) -> str:
    match source.kind:
        case "env":
            text = os.environ.get(source.place, "")
        case "file":
            text = await asyncio.to_thread(_file, source)
        case "command":
            text = await _output(source)
    key = text.partition("\n")[0].strip()
    if not key:
        raise KeyMissing(f"{source} has no key")
    if not _KEY.fullmatch(key):
        raise KeyMissing(f"{source} has a key with characters that no HTTP header can have")
    return key


def _file(source: KeySource) -> str:
    try:
        return Path(source.place).expanduser().read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise KeyMissing(f"{source} has no key: {error.strerror}") from None


async def _output(source: KeySource) -> str:
    """Return what a command prints. What it says on standard error is passed over: it may hold the key."""
    try:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(source.place),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise KeyMissing(f"{source} can't be run: {error.strerror}") from None
    try:
        async with asyncio.timeout(COMMAND_S):
            output, _ = await process.communicate()
    except TimeoutError:
        raise KeyMissing(f"{source} took longer than {COMMAND_S:.3g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise KeyMissing(f"{source} ended with status {process.returncode}")
    return output.decode(errors="replace")

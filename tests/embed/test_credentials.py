"""Keys: where they are read, and what is said where there is none."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from gateway.embed import credentials
from gateway.embed.credentials import Credentials, KeyMissing
from gateway.embed.options import KeyKind, KeySource


def keys(kind: KeyKind, place: str) -> Credentials:
    return Credentials(KeySource(kind, place, f"models.m.key_{kind}"))


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


async def test_a_key_is_the_first_line_of_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", " one \n")
    (tmp_path / "key").write_text("two\nmore\n")
    assert await keys("env", "SOME_KEY").key() == "one"
    assert await keys("file", str(tmp_path / "key")).key() == "two"
    assert await keys("command", python("print('three'); print('more')")).key() == "three"
    assert await Credentials(None).key() is None


async def test_a_command_has_no_shell() -> None:
    assert await keys("command", "echo $HOME;`id`").key() == "$HOME;`id`"


async def test_a_key_is_read_once_and_again_when_it_was_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old")
    source = keys("file", str(file))
    assert await source.key() == "old"
    file.write_text("new")
    assert await source.key() == "old"
    assert await source.renew("old")
    assert await source.key() == "new"
    assert not await source.renew("new")
    assert await source.renew("old"), "another call has renewed it"


@pytest.mark.parametrize(
    ("kind", "place", "words"),
    [
        ("env", "NO_SUCH_KEY", "the environment variable 'NO_SUCH_KEY' (setting models.m.key_env) has no key"),
        ("file", "/nowhere/key", "(setting models.m.key_file) has no key: No such file or directory"),
        ("file", "/dev/null", "(setting models.m.key_file) has no key"),
        ("command", "/nowhere/command", "can't be run: No such file or directory"),
        ("command", "true", "(setting models.m.key_command) has no key"),
        ("command", python("print('sk-secret'); raise SystemExit(3)"), "ended with status 3"),
        ("command", python("print('sk-secret \\x00')"), "characters that no HTTP header can have"),
    ],
)
async def test_a_source_without_a_key_is_named(kind: KeyKind, place: str, words: str) -> None:
    with pytest.raises(KeyMissing) as raised:
        await keys(kind, place).key()
    assert words in str(raised.value)
    assert "sk-secret" not in str(raised.value)
    assert "sk-secret" not in repr(raised.value)


async def test_a_command_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "COMMAND_S", 0.05)
    with pytest.raises(KeyMissing, match="took longer"):
        await keys("command", "sleep 60").key()

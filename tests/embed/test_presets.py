"""From settings to options: what presets add, and one line that names what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.embed import presets
from gateway.embed.model import Batch
from gateway.embed.presets import resolve, services
from gateway.errors import StartupError

PLAIN = {"url": "http://127.0.0.1:1/v1", "model": "m", "dimension": 4}


def test_a_preset_s_model_needs_its_name_alone() -> None:
    options = resolve("small", {"preset": "openai", "model": "text-embedding-3-small"})
    assert (options.url, options.dimension) == ("https://api.openai.com/v1", 1536)
    assert str(options.key) == "the environment variable 'OPENAI_API_KEY' (setting models.small.key_env)"
    assert (options.timeout_s, options.give_up_s, options.circuit_reset_s) == (10.0, 30.0, 5.0)


def test_what_an_entry_gives_goes_before_its_preset() -> None:
    given = {"preset": "openai", "url": "https://proxy/v1/", "key_file": "/run/key", "batch_texts": 7, "give_up_s": 3.0}
    options = resolve("small", {**given, "model": "text-embedding-3-large", "dimension": 256, "send_dimensions": True})
    assert (options.url, options.dimension, options.send_dimensions) == ("https://proxy/v1", 256, True)
    assert options.batch == Batch(7, 524_288)
    assert options.give_up_s == 3.0
    assert options.key is not None
    assert (options.key.kind, options.key.place) == ("file", "/run/key")


def test_a_key_that_a_preset_has_can_be_left_away() -> None:
    assert resolve("m", {"preset": "openai", **PLAIN, "key_env": ""}).key is None
    assert resolve("m", {"preset": "ollama", "model": "nomic-embed-text:latest"}).key is None


@pytest.mark.parametrize("preset", presets.known())
def test_every_preset_is_whole(preset: str) -> None:
    for model, dimension in presets.known()[preset]["dimensions"].items():
        options = resolve("m", {"preset": preset, "model": model})
        assert options.dimension == dimension
        assert options.batch.texts >= 1
        assert options.encoding in {"base64", "float"}


async def test_services_are_made_of_all_entries() -> None:
    made = services({"a": PLAIN, "b/c:d@e": PLAIN})
    assert {name: model.identity for name, model in made.items()} == {"a": "m@4", "b/c:d@e": "m@4"}
    for model in made.values():
        await model.close()


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("m", {**PLAIN, "preset": "azure"}, "setting models.m.preset is 'azure': it must be one of openai, holysheep"),
        ("m", {"model": "m", "dimension": 4}, "setting models.m.url is missing"),
        ("m", {"preset": "ollama"}, "setting models.m.model is missing"),
        ("m", {"preset": "ollama", "model": "mine"}, "setting models.m.dimension is missing"),
        ("m", {**PLAIN, "dimension": 70_000}, "setting models.m.dimension is 70000"),
        ("m", {**PLAIN, "model": "two words"}, "setting models.m.model is 'two words'"),
        ("m", {**PLAIN, "url": "ftp://host"}, "setting models.m.url is 'ftp://host'"),
        ("m", {**PLAIN, "url": "http://host:x"}, "setting models.m.url is 'http://host:x'"),
        ("m", {**PLAIN, "url": "http://host/?a=b"}, "setting models.m.url is 'http://host/?a=b'"),
        ("m", {**PLAIN, "url": ""}, "setting models.m.url is ''"),
        ("m", {**PLAIN, "key_env": "A", "key_file": "b"}, "models.m.key_env and models.m.key_file are both given"),
        ("m", {**PLAIN, "key_env": "sk-proj-1"}, "setting models.m.key_env is no name of an environment variable"),
        ("m", {**PLAIN, "key_file": ""}, "setting models.m.key_file is ''"),
        ("m", {**PLAIN, "key_command": "echo 'x"}, "setting models.m.key_command is no command line"),
        ("m", {**PLAIN, "key_command": ""}, "setting models.m.key_command is no command line"),
        (
            "m",
            {"preset": "openai", "model": "text-embedding-3-small", "dimension": 512},
            "'text-embedding-3-small' has 1536, unless it is asked for others (setting models.m.send_dimensions)",
        ),
        ("static-minilm-256", PLAIN, "'static-minilm-256', which is taken"),
        ("none", PLAIN, "'none', which is taken"),
        ("my model", PLAIN, "setting models has the name 'my model'"),
        ("", PLAIN, "setting models has the name ''"),
        ("x" * 129, PLAIN, "setting models has the name"),
    ],
)
def test_what_is_wrong_is_named(name: str, entry: dict[str, Any], words: str) -> None:
    with pytest.raises(StartupError) as raised:
        resolve(name, entry)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "sk-proj" not in str(raised.value)


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(StartupError, match="a user's name") as raised:
        resolve("m", {**PLAIN, "url": "https://me:secret@host/v1"})
    assert "secret" not in str(raised.value)

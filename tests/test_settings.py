"""The setting `models`: tables of a file, or JSON in the environment or a flag."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway import settings
from gateway.embed import local, presets
from gateway.errors import StartupError
from gateway.settings import load

ENTRY = {"preset": "ollama", "model": "nomic-embed-text", "timeout_s": 2.5}


def given(flags: dict[str, str], config: Path | None = None) -> dict[str, dict[str, object]]:
    return {name: model.given() for name, model in load(flags, config).models.items()}


def test_models_from_a_file(tmp_path: Path) -> None:
    config = tmp_path / "hotindex.toml"
    config.write_text(
        'default_model = "b"\n[models.a]\npreset = "openai"\nmodel = "x"\n[models.b]\nmodel = "y"\ngive_up_s = 3\n'
    )
    assert given({}, config) == {"a": {"preset": "openai", "model": "x"}, "b": {"model": "y", "give_up_s": 3.0}}
    assert load({}, config).default_model == "b"


def test_a_flag_goes_before_the_environment_and_that_before_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "hotindex.toml"
    config.write_text('[models.file]\nmodel = "x"\n')
    monkeypatch.setenv("HOTINDEX_MODELS", json.dumps({"environment": ENTRY}))
    assert given({}, config) == {"environment": ENTRY}
    assert given({"models": json.dumps({"flag": ENTRY})}, config) == {"flag": ENTRY}


def test_without_any_there_is_the_static_model() -> None:
    loaded = load({}, None)
    assert loaded.models == {}
    assert loaded.default_model == local.NAME == settings.STATIC_MODEL
    assert load({"default_model": "none"}, None).default_model == presets.NONE == settings.NO_MODEL


WRONG = [
    ("{", "setting models is '{': value error, it is no JSON"),
    ("[1]", "setting models is [1]"),
    ('{"a": 1}', "setting models.a is 1"),
    ('{"a": {"colour": "red"}}', "unknown setting 'models.a.colour'"),
    ('{"a": {"timeout_s": 0}}', "setting models.a.timeout_s is 0"),
    ('{"a": {"give_up_s": Infinity}}', "setting models.a.give_up_s is inf"),
    ('{"a": {"dimension": "many"}}', "setting models.a.dimension is 'many'"),
    ('{"a": {"encoding": "hex"}}', "setting models.a.encoding is 'hex'"),
    ('{"a": {"batch_texts": 0}}', "setting models.a.batch_texts is 0"),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
@pytest.mark.parametrize("source", ["flag", "environment"])
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, source: str, text: str, words: str) -> None:
    flags = {}
    if source == "flag":
        flags["models"] = text
    else:
        monkeypatch.setenv("HOTINDEX_MODELS", text)
    with pytest.raises(StartupError) as raised:
        load(flags, None)
    assert words in str(raised.value)


def test_a_default_model_has_to_be_there() -> None:
    with pytest.raises(StartupError, match="setting default_model is 'other': it must be static-minilm-256, none"):
        load({"default_model": "other"}, None)
    assert load({"default_model": "other", "models": json.dumps({"other": ENTRY})}, None).default_model == "other"

"""From the setting `models` to services: what an entry gives, what its preset adds, and what is wrong with it."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from gateway.embed import local
from gateway.embed.model import Batch
from gateway.embed.options import KeyKind, KeySource, ServiceOptions
from gateway.embed.service import Service
from gateway.engine.vectors import MAX_DIMENSION
from gateway.errors import StartupError

NONE = "none"
"""What the setting `default_model` says where there is none."""

_NAME = re.compile(r"[A-Za-z0-9_.:/@-]{1,128}")
_MODEL = re.compile(r"[!-~]{1,256}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KINDS: tuple[KeyKind, ...] = ("env", "file", "command")
_UNKNOWN_SERVICE: Mapping[str, Any] = {
    "encoding": "float",
    "batch_texts": 64,
    "batch_bytes": 262_144,
    "concurrency": 4,
    "dimensions": {},
}

Entry: TypeAlias = Mapping[str, Any]
"""What an entry gives of `gateway.settings.ModelSettings`' fields; what it leaves out is not there."""


def services(models: Mapping[str, Entry]) -> dict[str, Service]:
    """Return a service for each entry of the setting `models`. Raises StartupError that names setting and value."""
    return {name: Service(resolve(name, given)) for name, given in models.items()}


def resolve(name: str, given: Entry) -> ServiceOptions:
    """Return an entry's options. Raises StartupError that names setting and value."""
    _check_name(name)
    entry = {**_UNKNOWN_SERVICE, **_preset(name, given.get("preset")), **given}
    model = _model(name, entry)
    plain = ("concurrency", "encoding", "send_dimensions", "timeout_s", "give_up_s", "circuit_reset_s")
    return ServiceOptions(
        name=name,
        url=_url(name, entry),
        model=model,
        dimension=_dimension(name, entry, model),
        batch=Batch(entry["batch_texts"], entry["batch_bytes"]),
        key=_key(name, entry, given),
        **{field: entry[field] for field in (*plain, "price_per_million_tokens") if field in entry},
    )


@cache
def known() -> Mapping[str, Any]:
    """Return the presets, as in presets.toml."""
    return tomllib.loads((files("gateway.embed") / "presets.toml").read_text(encoding="utf-8"))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise StartupError(
            f"setting models has the name {name[:140]!r}: it must have 1 to 128 of the characters A-Z a-z 0-9 _ . : / @ -"
        )
    if name in {local.NAME, NONE}:
        raise StartupError(f"setting models has the name {name!r}, which is taken: call it otherwise")


def _preset(name: str, preset: str | None) -> Entry:
    if preset is None:
        return {}
    found: Entry | None = known().get(preset)
    if found is None:
        raise StartupError(f"setting models.{name}.preset is {preset!r}: it must be one of {', '.join(known())}")
    return found


def _url(name: str, entry: Entry) -> str:
    if "url" not in entry:
        raise StartupError(f"setting models.{name}.url is missing: where is the service? (Or give it a preset)")
    url: str = entry["url"]
    try:
        parts = urlsplit(url)
        # What stands before an @ may be a password: the address isn't shown then.
        if parts.username is not None or parts.password is not None:
            raise StartupError(
                f"setting models.{name}.url holds a user's name: give a key by key_env or key_file instead"
            )
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or not _MODEL.fullmatch(url):
        raise StartupError(f"setting models.{name}.url is {url!r}: it must be like https://host:port/v1")
    return url.rstrip("/").removesuffix("/embeddings")


def _model(name: str, entry: Entry) -> str:
    if "model" not in entry:
        raise StartupError(f"setting models.{name}.model is missing: what does the service call it?")
    model: str = entry["model"]
    if not _MODEL.fullmatch(model):
        raise StartupError(f"setting models.{name}.model is {model!r}: it must have 1 to 256 printable characters")
    return model


def _dimension(name: str, entry: Entry, model: str) -> int:
    dimensions: Mapping[str, int] = entry["dimensions"]
    of_model = dimensions.get(model, dimensions.get(model.removesuffix(":latest")))
    dimension: int | None = entry.get("dimension", of_model)
    if dimension is None:
        raise StartupError(f"setting models.{name}.dimension is missing: how many numbers has a vector of {model!r}?")
    if not 1 <= dimension <= MAX_DIMENSION:
        raise StartupError(f"setting models.{name}.dimension is {dimension}: it must be 1 to {MAX_DIMENSION}")
    if of_model not in {None, dimension} and not entry.get("send_dimensions"):
        raise StartupError(
            f"setting models.{name}.dimension is {dimension}: {model!r} has {of_model}, unless it is asked for others "
            f"(setting models.{name}.send_dimensions)"
        )
    return dimension


def _key(name: str, entry: Entry, given: Entry) -> KeySource | None:
    kinds = [kind for kind in _KINDS if f"key_{kind}" in given]
    if len(kinds) > 1:
        both = " and ".join(f"models.{name}.key_{kind}" for kind in kinds)
        raise StartupError(f"settings {both} are both given: a key comes from one place")
    # What an entry gives stands in for its preset's variable.
    kinds = kinds or [kind for kind in _KINDS if f"key_{kind}" in entry]
    if not kinds:
        return None
    kind = kinds[0]
    setting, place = f"models.{name}.key_{kind}", str(entry[f"key_{kind}"])
    if not place and kind == "env":
        return None
    # Without the value: who mistakes the setting puts the key itself here.
    if kind == "env" and not _VARIABLE.fullmatch(place):
        raise StartupError(
            f"setting {setting} is no name of an environment variable (the key itself doesn't belong here)"
        )
    if kind == "command" and not _is_command(place):
        raise StartupError(f"setting {setting} is no command line")
    if not place:
        raise StartupError(f"setting {setting} is ''")
    return KeySource(kind, place, setting)


def _is_command(text: str) -> bool:
    try:
        return bool(shlex.split(text))
    except ValueError:
        return False

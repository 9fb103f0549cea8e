"""Every setting: a flag, an environment variable HOTINDEX_…, or a key of a TOML file, in this order of precedence."""

from __future__ import annotations

import json
import os
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gateway.errors import StartupError

PREFIX = "HOTINDEX_"
OTHER_VARIABLES = frozenset({"HOTINDEX_CONFIG", "HOTINDEX_URL", "HOTINDEX_HTTP_URL"})
"""Environment variables of the command that are no settings of the gateway."""


NO_MODEL = "none"
STATIC_MODEL = "static-minilm-256"
"""The model that comes with the package."""


class ModelSettings(BaseModel):
    """A model behind an OpenAI-compatible service. What is None is as the preset has it, or as ServiceOptions does."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    preset: str | None = Field(None, description="A service that is known: openai, holysheep, ollama, vllm, tei")
    url: str | None = Field(None, description="Where it is, up to /embeddings")
    model: str | None = Field(None, description="What the service calls the model")
    dimension: int | None = Field(None, ge=1, description="How many numbers a vector has")
    send_dimensions: bool | None = Field(None, description="Ask the service for vectors of this dimension")
    key_env: str | None = Field(None, description="The environment variable with the key")
    key_file: str | None = Field(None, description="The file with the key")
    key_command: str | None = Field(None, description="The command that prints the key")
    encoding: Literal["base64", "float", "none"] | None = Field(None, description="encoding_format; none: not sent")
    batch_texts: int | None = Field(None, ge=1, description="Texts of one request")
    batch_bytes: int | None = Field(None, ge=1, description="Bytes of one request's texts")
    concurrency: int | None = Field(None, ge=1, le=1024, description="Requests at the same time")
    timeout_s: float | None = Field(None, gt=0, allow_inf_nan=False, description="Seconds a request may take: 10")
    give_up_s: float | None = Field(None, gt=0, allow_inf_nan=False, description="Seconds all tries may take: 30")
    circuit_reset_s: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Seconds until a service that fails is tried again, at first: 5"
    )
    price_per_million_tokens: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="What it costs, in any currency: 0, unknown"
    )

    def given(self) -> dict[str, Any]:
        """Return the fields that were given, as plain values."""
        return self.model_dump(exclude_none=True)


def _from_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None


class Settings(BaseSettings):
    """The gateway's settings. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on")
    ws_port: int = Field(8765, ge=0, le=65535, description="WebSocket port; 0 takes a free one")
    http_port: int = Field(8080, ge=0, le=65535, description="HTTP port; 0 takes a free one")
    data_dir: Path = Field(Path("data"), description="Where collections are kept")
    node: str = Field(
        default_factory=socket.gethostname, min_length=1, description="This node's name, in greetings and logs"
    )
    default_collection: str = Field("default", description="The collection of commands that name none")
    snapshot_interval_s: float = Field(300.0, gt=0, description="Seconds between snapshots of a changing graph")
    idempotency_window_s: float = Field(300.0, ge=0, description="Seconds event_ids are remembered")
    tombstone_retention_s: float = Field(
        604_800.0, ge=0, description="Seconds deletions are remembered, so that who was away learns of them"
    )
    ping_interval_s: float = Field(25.0, gt=0, description="Seconds between keep-alive pings")
    read_wait_s: float = Field(5.0, ge=0, description="Seconds a search waits for its min_index_version")
    max_message_bytes: int = Field(16 << 20, ge=1024, description="Bytes of the largest message or HTTP body")
    max_in_flight: int = Field(256, ge=1, description="Commands a connection may have under way")
    max_connections: int = Field(65_536, ge=1, description="WebSocket connections, and as many event streams over HTTP")
    max_commands_per_s: float = Field(
        0.0, ge=0, description="Commands a second a connection may send, on average; 0 is no limit"
    )
    max_writes_per_s: float = Field(
        0.0, ge=0, description="Documents a second that may be written to a collection, on average; 0 is no limit"
    )
    max_http_bytes: int = Field(
        256 << 20, ge=1024, description="Bytes of HTTP bodies in memory, of all requests together"
    )
    max_rooms: int = Field(128, ge=1, description="Subscriptions per connection")
    max_watches: int = Field(1000, ge=1, description="Live queries per connection")
    room_log_bytes: int = Field(8 << 20, ge=0, description="Bytes of latest events a room keeps, per collection")
    max_lag_s: float = Field(
        60.0, gt=0, description="Seconds a subscriber may take for what it has missed, before it is closed as too slow"
    )
    hot_target: int = Field(1024, ge=0, description="Rows the hot buffer keeps, per collection")
    hot_limit: int = Field(32_768, ge=1, description="Rows in the hot buffer at which writes wait")
    queue_documents: int = Field(16_384, ge=1, description="Documents queued for commit, per collection")
    queue_bytes: int = Field(64 << 20, ge=1, description="Bytes queued for commit, per collection")
    redis_url: str = Field(
        "",
        description="The Redis that nodes share: redis://, rediss://, redis+cluster://, redis+sentinel://; none: alone",
    )
    advertise: str = Field("", description="The host at which other nodes reach this one, if not the one listened on")
    collections: str = Field("", description="Collections to host, joined by commas; none: all")
    redis_timeout_s: float = Field(2.0, gt=0, description="Seconds Redis may take to answer")
    write_wait_s: float = Field(5.0, gt=0, description="Seconds a write waits for Redis, before it is refused")
    settle_s: float = Field(3.0, ge=0, description="Seconds nodes wait for each other when Redis has lost its memory")
    stream_changes: int = Field(16_384, ge=1, description="Latest changes kept in Redis, per collection")
    models: Annotated[dict[str, ModelSettings], NoDecode, BeforeValidator(_from_json)] = Field(
        default_factory=dict, description="Models behind services, by name: tables of a TOML file, or JSON"
    )
    embedding_cache_bytes: int = Field(
        256 << 20, ge=0, description="Bytes of the vectors of texts kept for when they come again, per collection"
    )
    default_model: str = Field(
        STATIC_MODEL,
        description="The model of collections made by a first write; none: they take vectors only",
    )
    profile_tau_s: float = Field(
        2_592_000.0, gt=0, description="Seconds after which what a user did counts for a user's vector 1/e as much"
    )
    seen_for_s: float = Field(31_536_000.0, ge=0, description="Seconds an item a user has seen isn't recommended again")
    action_weights: Annotated[dict[str, float], NoDecode, BeforeValidator(_from_json)] = Field(
        default_factory=dict, description="Weights of users' actions, from -1 to 1: a table of a TOML file, or JSON"
    )
    rating_scale: Annotated[tuple[float, float, float], NoDecode, BeforeValidator(_from_json)] = Field(
        (0.0, 5.5, 10.0), description="The lowest rating, the one that says nothing, the highest: an array"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Log lines as JSON or text; auto is text on a terminal"
    )

    @model_validator(mode="after")
    def _hot_limit_leaves_room(self) -> Self:
        if self.hot_limit < 2 * self.hot_target:
            raise ValueError(
                f"setting hot_limit is {self.hot_limit}: it must be at least twice hot_target ({self.hot_target})"
            )
        return self

    @model_validator(mode="after")
    def _rating_scale_rises(self) -> Self:
        low, neutral, high = self.rating_scale
        if not low < neutral < high:
            raise ValueError(
                f"setting rating_scale is {self.rating_scale}: each number must be larger than the one before"
            )
        return self

    @model_validator(mode="after")
    def _default_model_is_there(self) -> Self:
        if self.default_model not in {NO_MODEL, STATIC_MODEL, *self.models}:
            raise ValueError(
                f"setting default_model is {self.default_model!r}: "
                f"it must be {STATIC_MODEL}, {NO_MODEL}, or a name in models"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load(flags: Mapping[str, Any], config: Path | None) -> Settings:
    """Put the sources together; `flags` are those that were given. Raises StartupError that names setting and value."""
    _reject_unknown_variables()

    class Configured(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    if config is not None and not config.is_file():
        raise StartupError(f"configuration file {str(config)!r} does not exist")
    try:
        return Configured(**flags)
    except tomllib.TOMLDecodeError as error:
        raise StartupError(f"configuration file {str(config)!r} is no TOML: {error}") from None
    except ValidationError as error:
        raise StartupError("; ".join(map(_sentence, error.errors()))) from None


def _sentence(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "value_error" and not name:
        return str(problem["ctx"]["error"])
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {name!r}"
    return f"setting {name} is {problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _reject_unknown_variables() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    for name in os.environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise StartupError(f"unknown setting {name!r} in the environment")

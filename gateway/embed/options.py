"""Where a service of embeddings is, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from gateway.embed.model import Batch

Encoding: TypeAlias = Literal["base64", "float", "none"]
"""What `encoding_format` asks for; none leaves it out."""

KeyKind: TypeAlias = Literal["env", "file", "command"]


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where a key comes from: an environment variable, a file, or a command that prints it."""

    kind: KeyKind
    place: str = field(repr=False)
    """The variable, the path, or the command line."""
    setting: str

    def __str__(self) -> str:
        words = {"env": "environment variable", "file": "file", "command": "command"}
        # A command's arguments may hold a secret.
        shown = self.place.split()[0] if self.kind == "command" else self.place
        return f"the {words[self.kind]} {shown!r} (setting {self.setting})"


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """One entry of the setting `models`, with what its preset adds."""

    name: str
    url: str
    """Without a slash at its end; `/embeddings` follows."""
    model: str
    dimension: int
    batch: Batch
    concurrency: int
    encoding: Encoding = "float"
    send_dimensions: bool = False
    key: KeySource | None = None
    timeout_s: float = 10.0
    """What one request may take, from connecting to the last byte."""
    give_up_s: float = 30.0
    """What all tries of one call may take."""
    circuit_reset_s: float = 5.0
    price_per_million_tokens: float = 0.0
    """0 is unknown."""

    def setting(self, field: str) -> str:
        return f"models.{self.name}.{field}"

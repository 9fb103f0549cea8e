"""The forms in which a watch is told: in a client's encoding, or as one node passes it on to another."""

from __future__ import annotations

from typing import Any, Protocol

from gateway.engine.types import Vector
from gateway.protocol.codec import MSGPACK, Codec
from gateway.protocol.framing import relay_frame
from gateway.protocol.messages import Message


class Form(Protocol):
    def written(self, message: Message) -> bytes:
        """Return a message as it goes to the sink."""
        ...

    def metadata(self, text: str) -> Any:
        """Return stored metadata in the form in which they are shown."""
        ...

    def vector(self, blob: bytes) -> Any:
        """Return a stored vector in the form in which it is shown."""
        ...

    def version(self, version: int) -> int | None:
        """Return a document's version where it is shown."""
        ...

    def query(self, vector: Vector) -> bytes | None:
        """Return the vector of a query where it is shown."""
        ...


class ForClient:
    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.metadata = codec.metadata
        self.vector = codec.vector

    def written(self, message: Message) -> bytes:
        return self._codec.framed(message)

    def version(self, version: int) -> None:  # noqa: ARG002 - clients are told what has changed
        return None

    def query(self, vector: Vector) -> None:  # noqa: ARG002 - clients know what they asked for
        return None


class _ForEdge:
    """Metadata and vectors as they are stored, and versions: an edge tells differences apart, and encodes, itself. The
    vector of the query is what it asks another host with.
    """

    def written(self, message: Message) -> bytes:
        return relay_frame(MSGPACK.encode(message))

    def metadata(self, text: str) -> str:
        return text

    def vector(self, blob: bytes) -> bytes:
        return blob

    def version(self, version: int) -> int:
        return version

    def query(self, vector: Vector) -> bytes:
        return vector.tobytes()


FOR_EDGE = _ForEdge()

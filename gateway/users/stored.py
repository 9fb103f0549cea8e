"""A user's profile as a document: its sum is the vector, all else the metadata."""

from __future__ import annotations

import msgspec
import numpy as np

from gateway.engine.types import Document, State
from gateway.errors import StorageUnavailable
from gateway.users import profile as profiles
from gateway.users.profile import Interaction, Profile


class Touch(msgspec.Struct, frozen=True, array_like=True):
    """The interaction that made the profile what it is."""

    item_id: str
    weight: float
    at: int
    """Microseconds since the epoch."""


class Known(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is stored of a user."""

    profile: Profile
    last: Touch | None = None


class _Last(msgspec.Struct, frozen=True):
    last: Touch | None = None


_DECODER = msgspec.json.Decoder(Known)
_LAST = msgspec.json.Decoder(_Last)


def encode(profile: Profile, dimension: int, event: Interaction | None = None) -> State:
    """Return the form that is stored; `event` is what was learned last."""
    vector = profile.vector or bytes(4 * dimension)
    last = None if event is None else Touch(event.item_id, event.weight, event.at)
    metadata = msgspec.json.encode(Known(msgspec.structs.replace(profile, vector=b""), last))
    return State(metadata.decode(), vector)


def known(document: Document) -> Known:
    """Return what a document says but for the sum. Raises StorageUnavailable where it is damaged, or of another format."""
    try:
        found = _DECODER.decode(document.metadata)
    except msgspec.MsgspecError as error:
        raise StorageUnavailable(f"the profile of user {document.id!r} can't be read: {error}") from error
    if found.profile.format != profiles.FORMAT:
        raise StorageUnavailable(
            f"the profile of user {document.id!r} has format {found.profile.format}; this version reads {profiles.FORMAT}"
        )
    return found


def last(document: Document) -> Touch | None:
    """Return the interaction that made a document what it is, if one did. Raises StorageUnavailable."""
    try:
        return _LAST.decode(document.metadata).last
    except msgspec.MsgspecError as error:
        raise StorageUnavailable(f"the profile of user {document.id!r} can't be read: {error}") from error


def decode(document: Document, vector: bytes) -> Profile:
    """Return the profile that was stored. Raises as `known` does."""
    summed = vector if np.frombuffer(vector, np.float32).any() else b""
    return msgspec.structs.replace(known(document).profile, vector=summed)

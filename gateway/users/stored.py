"""A user's profile as the metadata of a document."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.engine.types import Document, Vector
from gateway.errors import StorageUnavailable
from gateway.users import profile as profiles
from gateway.users.profile import EMPTY, FORMAT, Interaction, Memory, Profile, learn

TOUCHED_MAX = 32
"""How many of a user's interactions are kept to count what is popular anew after a start."""


class Touch(msgspec.Struct, frozen=True, array_like=True):
    """An interaction, as far as others are concerned."""

    item_id: str
    weight: float
    at: int
    """Microseconds since the epoch."""


class Known(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is stored of a user. `touched` is what was done, that which was learned last in front."""

    profile: Profile
    touched: tuple[Touch, ...] = ()
    placed: bool = False
    """Whether it was a vector from elsewhere that came last, so that nothing was done."""


class _Touched(msgspec.Struct, frozen=True):
    touched: tuple[Touch, ...] = ()
    placed: bool = False


NOBODY = Known(EMPTY)

_KNOWN = msgspec.json.Decoder(Known)
_TOUCHED = msgspec.json.Decoder(_Touched)


def learned(known: Known, event: Interaction, memory: Memory) -> Known:
    """Return what is known after one more event."""
    touch = Touch(event.item_id, event.weight, event.at)
    return Known(learn(known.profile, event, memory), (touch, *known.touched)[:TOUCHED_MAX])


def placed(known: Known, vector: Vector, at: int) -> Known:
    """Return what is known once a vector from elsewhere has replaced the direction. Raises InvalidVector."""
    return Known(profiles.placed(known.profile, vector, at), known.touched, placed=True)


def encode(known: Known) -> str:
    """Return the form that is stored."""
    return msgspec.json.encode(known).decode()


def decode(document: Document) -> Known:
    """Return what was stored. Raises StorageUnavailable where it is damaged, or of another format."""
    found: Known = _decoded(_KNOWN, document)
    if found.profile.format != FORMAT:
        raise StorageUnavailable(
            f"the profile of user {document.id!r} has format {found.profile.format}; this version reads {FORMAT}"
        )
    return found


def touched(document: Document) -> tuple[Touch, ...]:
    """Return what a user did, that which was learned last in front. Raises StorageUnavailable where it is damaged."""
    found: _Touched = _decoded(_TOUCHED, document)
    return found.touched


def last_touched(document: Document) -> Touch | None:
    """Return what the user did by which the document became what it is, None where that is something else.

    Raises StorageUnavailable where it is damaged.
    """
    found: _Touched = _decoded(_TOUCHED, document)
    return found.touched[0] if found.touched and not found.placed else None


def _decoded(decoder: msgspec.json.Decoder[Any], document: Document) -> Any:
    try:
        return decoder.decode(document.metadata)
    except msgspec.MsgspecError as error:
        raise StorageUnavailable(f"the profile of user {document.id!r} can't be read: {error}") from error

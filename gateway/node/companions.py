"""The collection beside a collection: what is known of its users, a document each.

It is a collection like any other to the store, the bus and the other nodes, so that profiles are as durable, and as much
the same everywhere, as documents are. Clients can't name it.
"""

from __future__ import annotations

import numpy as np

from gateway.engine.types import Metric, Spec
from gateway.protocol import checks

VECTOR = np.ones(1, np.float32).tobytes()
"""Each profile's: nobody searches among them, and what never changes costs the index nothing."""

_USERS = "~users"


def users_of(name: str) -> str:
    """Return the name of the collection of `name`'s users."""
    return name + _USERS


def owner(name: str) -> str:
    """Return the name of the collection that clients know: `name`, unless that is a companion's."""
    return name.removesuffix(_USERS)


def is_companion(name: str) -> bool:
    return name.endswith(_USERS)


def check_name(name: str) -> None:
    """Raise InvalidArgument unless this is the name of a collection or of its companion."""
    checks.collection_name(owner(name))


def spec(owner: Spec) -> Spec:
    """Return the spec of the users of a collection."""
    return Spec(users_of(owner.name), dimension=1, metric=Metric.IP)

"""The epoch as clients know it: one life of a collection, and, in it, since when nothing they saw can have been given up.

Nodes that lost the order agree on where to go on. Where not all of them could say what they hold, one that was away may
have acknowledged more than that, and told subscribers: the term that begins then is odd. A position from before is good up
to where that term began; one beyond may name changes that nobody else has had. Pure.
"""

from __future__ import annotations

import re
from typing import TypeAlias

_TERM = re.compile("[0-9]{0,20}")
Starts: TypeAlias = tuple[tuple[int, int], ...]
"""Terms, oldest first, with the index_versions they began after."""


def epoch(life: str, starts: Starts) -> str:
    """Return the epoch to tell clients."""
    parted = [term for term, _ in starts if term % 2]
    return f"{life}.{parted[-1]}" if parted else life


def life(epoch: str) -> str:
    """Return which life an epoch belongs to."""
    return epoch.partition(".")[0]


def holds(told: str, since: int, life_now: str, starts: Starts) -> bool:
    """Tell whether a position that was reached in the epoch `told` still stands for what it stood for."""
    told_life, _, term = told.partition(".")
    if told_life != life_now or not _TERM.fullmatch(term):
        return False
    if term and int(term) not in {known for known, _ in starts}:
        return False
    return all(since <= start for later, start in starts if later % 2 and later > int(term or 0))

"""A rate, as a bucket of tokens."""

from __future__ import annotations

from collections.abc import Callable


class TokenBucket:
    """Fills by `per_s` tokens a second, up to a second's worth, and at least one. `now` gives microseconds since the
    epoch.
    """

    def __init__(self, per_s: float, now: Callable[[], int]) -> None:
        self._per_s = per_s
        self._now = now
        self._tokens = self._most = max(1.0, per_s)
        self._at = now()

    def take(self, tokens: int = 1) -> float:
        """Take tokens and return 0; or take none, and return the seconds until there are enough.

        More than the bucket holds are given when it is full. It owes them then, and gives none until it has caught up.
        """
        at = self._now()
        self._tokens = min(self._most, self._tokens + max(0, at - self._at) * self._per_s / 1e6)
        self._at = at
        enough = min(tokens, self._most)
        if self._tokens >= enough:
            self._tokens -= tokens
            return 0.0
        return (enough - self._tokens) / self._per_s

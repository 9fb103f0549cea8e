"""How long to wait before the next attempt to connect."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Full jitter: a random time up to a limit that doubles with each attempt.

    Spread over the whole span, so that a thousand clients of a restarted gateway don't come back at one moment.
    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    first_s: float = 0.1
    limit_s: float = 10.0
    source: random.Random = field(default_factory=random.Random)

    def delay_s(self, attempt: int) -> float:
        """Return the time to wait before attempt number `attempt`, counted from 0."""
        ceiling = min(self.limit_s, self.first_s * 2 ** min(attempt, 32))
        return self.source.uniform(0, ceiling)

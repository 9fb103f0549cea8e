"""Whether a service is asked at all: a circuit breaker.

            FAILURES in a row, over reset_s;
            or a refusal of the settings
    CLOSED ---------------------------------> OPEN <------------------+
       ^                                       |  its pause is over:  |
       |            any call succeeds          v  one call goes       | it fails: a longer pause
       +-------------------------------- HALF_OPEN -------------------+

Source: M. Nygard, "Release It!", 2nd edition, 2018, section 5.2.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from random import Random

FAILURES = 3
"""So many requests in a row fail, the first begun at least `reset_s` ago, and the circuit opens. A burst of calls that
meets a moment's trouble is no outage.
"""

LONGEST_S = 60.0
"""Pauses double up to this."""


class Admission(Enum):
    GO = auto()
    PROBE = auto()
    """It goes alone, and must be followed by `succeeded`, `failed` or `postpone`."""
    REFUSED = auto()


class _State(Enum):
    CLOSED = auto()
    OPEN = auto()
    HALF_OPEN = auto()


class Circuit:
    """Takes what became of requests, and says which calls may go. Knows no requests itself."""

    def __init__(self, reset_s: float, clock: Callable[[], float], random: Random) -> None:
        self._reset_s = reset_s
        self._clock = clock
        self._random = random
        self._state = _State.CLOSED
        self._failures = 0
        self._failing_since_s = 0.0
        self._pauses = 0
        self._until_s = 0.0
        self.reason = ""
        """Of the latest failure that opened it."""

    @property
    def closed(self) -> bool:
        return self._state is _State.CLOSED

    def wait_s(self) -> float:
        """Return the time until the next call may go. While a probe is under way, a guess."""
        if self._state is _State.HALF_OPEN:
            return self._reset_s
        return max(0.0, self._until_s - self._clock())

    def admit(self) -> Admission:
        if self._state is _State.CLOSED:
            return Admission.GO
        if self._state is _State.HALF_OPEN or self._clock() < self._until_s:
            return Admission.REFUSED
        self._state = _State.HALF_OPEN
        return Admission.PROBE

    def succeeded(self) -> bool:
        """A request was answered. Return whether that closes the circuit."""
        closes = self._state is not _State.CLOSED
        self._state = _State.CLOSED
        self._failures = 0
        self._pauses = 0
        return closes

    def failed(self, reason: str, began_s: float, *, probe: bool = False, for_good: bool = False) -> bool:
        """A request failed that began at `began_s`; `for_good` is what no other try would change.

        Return whether it opens a closed circuit.
        """
        if self._state is _State.CLOSED:
            if not self._failures:
                self._failing_since_s = began_s
            self._failures += 1
            lasting = self._failures >= FAILURES and self._clock() - self._failing_since_s >= self._reset_s
            if lasting or for_good:
                self._open(reason)
                return True
        elif self._state is _State.HALF_OPEN and probe:
            self._open(reason)
        return False

    def postpone(self) -> None:
        """The probe ended without a result: the next one goes after a pause as long as the last."""
        if self._state is _State.HALF_OPEN:
            self._pauses -= 1
            self._open(self.reason)

    def _open(self, reason: str) -> None:
        self._state = _State.OPEN
        self.reason = reason
        pause_s = min(max(LONGEST_S, self._reset_s), self._reset_s * 2 ** min(self._pauses, 16))
        if self._pauses:
            pause_s *= self._random.uniform(0.75, 1.0)
        self._pauses += 1
        self._until_s = self._clock() + pause_s

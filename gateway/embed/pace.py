"""When a service may be asked again: what its headers say, and the back-off where they say nothing.

`Retry-After` is RFC 9110, section 10.2.3. `retry-after-ms` and `x-ratelimit-*` are OpenAI's, and of those who follow it
(https://platform.openai.com/docs/guides/rate-limits).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime

LONGEST_S = 60.0
"""Whatever a service says, it is asked again after this time."""

BACKOFF_FIRST_S = 0.25
BACKOFF_LONGEST_S = 8.0

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_LIMITS = ("requests", "tokens")


class Pace:
    """Holds back all calls of a service until a time it told."""

    def __init__(self) -> None:
        self._until_s = -math.inf

    def hold(self, now_s: float, pause_s: float) -> None:
        self._until_s = max(self._until_s, now_s + pause_s)

    def wait_s(self, now_s: float) -> float:
        """Return the time until the next call may go; 0 is now."""
        return max(0.0, self._until_s - now_s)


def told_s(headers: Mapping[str, str], wall_s: float, *, refused: bool) -> float | None:
    """Return how long a service says to wait, at most LONGEST_S; None where it doesn't say, or nothing that makes sense.

    `headers` have lower-case names; `wall_s` is the time of day, for dates. What was not refused has no Retry-After.
    """
    told: list[float | None] = []
    if refused:
        milliseconds = _number(headers.get("retry-after-ms", ""))
        told.append(None if milliseconds is None else milliseconds / 1000)
        told.append(_retry_after_s(headers.get("retry-after", ""), wall_s))
    told.append(max(_exhausted_s(headers), default=None))
    return next((min(pause_s, LONGEST_S) for pause_s in told if pause_s is not None), None)


def duration_s(text: str) -> float | None:
    """Return the seconds of "1s", "6m0s", "20ms", "1h2m" or a plain number, if it is more than 0."""
    text = text.strip()
    if not _DURATION.fullmatch(text):
        return _number(text)
    seconds = math.fsum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
    return seconds if seconds > 0 else None


def _retry_after_s(text: str, wall_s: float) -> float | None:
    seconds = _number(text)
    if seconds is not None or not text:
        return seconds
    try:
        pause_s = parsedate_to_datetime(text).timestamp() - wall_s
    except (ValueError, OverflowError, OSError):
        return None
    return pause_s if pause_s > 0 else None


def _exhausted_s(headers: Mapping[str, str]) -> Iterator[float]:
    for limit in _LIMITS:
        if headers.get(f"x-ratelimit-remaining-{limit}", "").strip() == "0":
            reset_s = duration_s(headers.get(f"x-ratelimit-reset-{limit}", ""))
            if reset_s is not None:
                yield reset_s


def _number(text: str) -> float | None:
    """Return a number more than 0. Infinity is one: it is clipped like any that is too large."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number > 0 else None

"""The demo's live query: its list, what is new in it, and how soon after an event's sending it was told."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from hotindex.types import Change, Hit, Match

K = 5

_PLACES = ("1st", "2nd", "3rd", "4th", "5th")
_EVENTS = 4096
"""As many of the latest events are kept: a difference comes long before that many more are sent."""


@dataclass(frozen=True, slots=True)
class _Event:
    document_id: str
    index_version: int
    sent_at: float


@dataclass(frozen=True, slots=True)
class _Difference:
    """What changed after index_version `since`, up to `until`; `sent` events had been sent when it came.

    An event of a document in `moved` has changed the list. What came in otherwise did so as another made room.
    """

    moved: frozenset[str]
    since: int
    until: int
    at: float
    sent: int


class Watched:
    """Takes what is sent and what is told. Times in seconds, of one clock.

    A difference is measured from the sending of the oldest event that it tells of. Acknowledgements, which say what
    index_version an event has, may come after it: it is settled once those of all that was sent before are there.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.results: tuple[Match, ...] = ()
        self.marks: dict[str, str] = {}
        """By id: + came with the latest difference, ↑ and ↓ moved with it."""
        self.news = ""
        """The latest difference, in a line."""
        self.differences = 0
        self.told_s: list[float] = []
        self.agrees = False
        """Whether the list was, when all had come to rest, that of an exact search."""
        self._index_version = 0
        self._sent = 0
        self._in_flight: dict[int, None] = {}
        self._events: deque[_Event] = deque(maxlen=_EVENTS)
        self._open: deque[_Difference] = deque()

    def sending(self) -> int:
        """Return the number of an event about to be sent."""
        self._sent += 1
        self._in_flight[self._sent] = None
        return self._sent

    def acked(self, number: int, document_id: str, index_version: int, sent_at: float) -> None:
        del self._in_flight[number]
        self._events.append(_Event(document_id, index_version, sent_at))
        self._settle()

    def take(self, change: Change, at: float) -> None:
        """Take the first answer, or a difference that came `at`."""
        if self.results:
            self.differences += 1
            moved = _moved(self.results, change)
            self._open.append(_Difference(moved, self._index_version, change.index_version, at, self._sent))
            self.marks = _marks(self.results, change.results)
            self.news = _news(self.results, change)
        else:
            self.news = ", ".join(map(name, change.results))
        self.results, self._index_version = change.results, change.index_version
        self._settle()

    def _settle(self) -> None:
        first = next(iter(self._in_flight), math.inf)
        while self._open and self._open[0].sent < first:
            told = self._open.popleft()
            causes = [
                event.sent_at
                for event in self._events
                if event.document_id in told.moved and told.since < event.index_version <= told.until
            ]
            if causes:
                self.told_s.append(told.at - min(causes))


def equal(matches: Sequence[Match], hits: Sequence[Hit]) -> bool:
    """Tell whether a watch's list is that of a search. Scores may differ by float32's rounding: the products have other
    shapes.
    """
    return len(matches) == len(hits) and all(
        match.id == hit.id and match.metadata == hit.metadata and math.isclose(match.score, hit.score, abs_tol=1e-5)
        for match, hit in zip(matches, hits, strict=True)
    )


def name(match: Match) -> str:
    return str(match.metadata.get("name", match.id))


def _moved(before: Sequence[Match], change: Change) -> frozenset[str]:
    least = before[-1].score if len(before) == K else -math.inf
    came = (match.id for match in change.added if match.score >= least)
    return frozenset([*came, *(match.id for match in change.changed), *change.removed])


def _marks(before: Sequence[Match], after: Sequence[Match]) -> dict[str, str]:
    places = {match.id: place for place, match in enumerate(before)}
    marks = {}
    for place, match in enumerate(after):
        old = places.get(match.id)
        if old is None:
            marks[match.id] = "+"
        elif old != place:
            marks[match.id] = "↑" if place < old else "↓"
    return marks


def _news(before: Sequence[Match], change: Change) -> str:
    names = {match.id: name(match) for match in before}
    places = {match.id: place for match, place in zip(change.results, _PLACES, strict=False)}
    return ", ".join(
        [
            *(f"+ {name(match)} ({places[match.id]})" for match in change.added),
            *(f"~ {name(match)} ({places[match.id]})" for match in change.changed),
            *(f"- {names[document_id]}" for document_id in change.removed),
        ]
    )

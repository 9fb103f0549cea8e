"""The demo's user: what is recommended, and what in that has changed since the last rating."""

from __future__ import annotations

from collections.abc import Callable

from hotindex.types import RecommendationUpdate

K = 5


class Recommended:
    """Takes what the user does and what is told. `name` returns a movie's."""

    def __init__(self, user_id: str, name: Callable[[str], str]) -> None:
        self.user_id = user_id
        self.ids: tuple[str, ...] = ()
        self.news = ""
        """The list, with what is new in it and what was rated last, in a line."""
        self.ratings = 0
        self.changes = 0
        self.agrees = False
        """Whether the list was, after the last rating, that of a search."""
        self._name = name
        self._rated = ""

    def rating(self, movie: str, rating: int) -> None:
        """Note a rating that is about to be sent: the list may change before it is acknowledged."""
        self.ratings += 1
        self._rated = f"{rating} for {self._name(movie)}: "

    def take(self, update: RecommendationUpdate) -> bool:
        """Take the first list, or another one; return whether other movies are in it."""
        before, self.ids = self.ids, tuple(item.id for item in update.results)
        if set(before) == set(self.ids):
            return False
        self.changes += bool(before)
        marks = ("+ " if before and one not in before else "" for one in self.ids)
        self.news = self._rated + ", ".join(mark + self._name(one) for mark, one in zip(marks, self.ids, strict=True))
        return True

    @property
    def titles(self) -> str:
        return ", ".join(map(self._name, self.ids))

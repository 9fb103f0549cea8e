"""The demo's user: what is recommended, and what came into that last."""

from __future__ import annotations

from collections.abc import Callable

from hotindex.types import RecommendationUpdate

K = 5


class Recommended:
    """Takes what the user does and what is told. `name` returns a movie's."""

    def __init__(self, user_id: str, name: Callable[[str], str]) -> None:
        self.user_id = user_id
        self.ids: tuple[str, ...] = ()
        self.ratings = 0
        self.changes = 0
        self.agrees = False
        """Whether the list was, after the last rating, that of a search."""
        self._name = name
        self._came: frozenset[str] = frozenset()
        """What came into the list when it became another one last."""
        self._after = ""
        """The rating since the change before that, if there was one: the other changes are others' doing."""
        self._rated = ""
        """A rating that no change has followed yet."""

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
        self._came = frozenset(self.ids).difference(before) if before else frozenset()
        self._after, self._rated = self._rated, ""
        return True

    @property
    def news(self) -> str:
        """The list, with what came into it last, and what was rated just before, in a line."""
        return self._after + ", ".join(("+ " if one in self._came else "") + self._name(one) for one in self.ids)

"""What is recommended to a user, kept up to date by the gateway."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hotindex.live import LiveList
from hotindex.types import Recommendation, RecommendationUpdate


def _ids(items: Iterable[Recommendation]) -> list[str]:
    return [item.id for item in items]


class Recommendations(LiveList[Recommendation, RecommendationUpdate]):
    """Iterate over it, in one task. Made by `Client.recommendations`; begins with the first iteration or `async with`.

    An `async with` ends it with its block. Without one the end of an `async for` does, `break` included. It ends too with
    `close`, and with an error, such as NotFound where the collection is dropped.

    The first update is the first list; another one comes when items come, leave, change places, or have other scores after
    the user did something. A list that the gateway sends again as it was is none, and a consumer that is busy gets the
    latest list alone. A lost connection is no more than that: the gateway is asked again, and if other items or another
    order are its answer, that is one update.

    `results` is the present list, in the gateway's order: where a list is to be diverse, that isn't quite the order of
    scores.
    """

    @property
    def user_id(self) -> str:
        user_id: str = self.command["user_id"]
        return user_id

    def _answer(self, reply: dict[str, Any]) -> None:
        before = self.results
        self.results = tuple(Recommendation(one["id"], one["score"], one["metadata"]) for one in reply["results"])
        if self._handed_out == before and _ids(before) == _ids(self.results):
            self._handed_out = self.results  # scores age a little while one is away

    def _update(self, update: dict[str, Any]) -> None:
        known = {one.id: one.metadata for one in self.results}
        scored = zip(update["recommendations"], update["scores"], strict=True)
        self.results = tuple(Recommendation(one, score, known.get(one)) for one, score in scored)

    def _news(self, before: tuple[Recommendation, ...]) -> RecommendationUpdate:
        old, new = set(_ids(before)), set(_ids(self.results))
        return RecommendationUpdate(
            self.user_id,
            added=tuple(item for item in self.results if item.id not in old),
            removed=tuple(item.id for item in before if item.id not in new),
            results=self.results,
        )

"""What clients of this node watch at another: what they were told, and what there is to tell. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from gateway.node.forms import Form
from gateway.protocol.messages import (
    RecommendationUpdate,
    Watching,
    WatchItem,
    WatchResult,
    WatchUpdate,
)
from gateway.protocol.timestamps import iso

Item: TypeAlias = WatchItem | WatchResult


class Told(Protocol):
    """A watch's answer: as its client was told it last, and as a host told of it since."""

    index_version: int
    """Of what was heard last."""
    query: bytes | None
    """The vector a host watches for."""

    def start(self, whole: Watching, at: int) -> None:
        """Take a first answer, at microseconds since the epoch; there is another one from each host."""
        ...

    def follow(self, update: WatchUpdate | RecommendationUpdate) -> None:
        """Take what has changed."""
        ...

    def first(self, watch_id: str, form: Form) -> Watching:
        """Return the client's first answer, and take it as told."""
        ...

    def news(self, watch_id: str, form: Form) -> WatchUpdate | RecommendationUpdate | None:
        """Return what there is to tell, and take it as told."""
        ...


class TopK:
    """The list of a query. However much was heard since it was told, there is one difference to tell."""

    def __init__(self) -> None:
        self.index_version = 0
        self.query: bytes | None = None
        self._whole: Watching | None = None
        self._told: dict[str, Item] = {}
        self._now: dict[str, Item] = {}

    def start(self, whole: Watching, at: int) -> None:  # noqa: ARG002 - it has an index_version
        self._whole = whole
        self._now = {item.id: item for item in whole.results}
        self.index_version, self.query = whole.index_version, whole.query

    def follow(self, update: WatchUpdate | RecommendationUpdate) -> None:
        assert isinstance(update, WatchUpdate), "it isn't about a user"
        if self._now is self._told:
            self._now = dict(self._told)
        for document_id in update.removed:
            del self._now[document_id]
        for item in (*update.added, *update.changed):
            self._now[item.id] = item
        self.index_version = update.index_version
        self.query = update.query or self.query

    def first(self, watch_id: str, form: Form) -> Watching:
        assert self._whole is not None, "it has been started"
        whole, self._whole, self._told = self._whole, None, self._now
        return _first(whole, watch_id, form)

    def news(self, watch_id: str, form: Form) -> WatchUpdate | None:
        self._whole = None
        told, self._told = self._told, self._now
        if told is self._now:
            return None
        added, changed = [], []
        for rank, item in enumerate(sorted(self._now.values(), key=_place), 1):
            before = told.get(item.id)
            if before is None:
                added.append(_item(item, rank, form))
            elif (before.score, before.version) != (item.score, item.version):
                changed.append(_item(item, rank, form))
        removed = tuple(document_id for document_id in told if document_id not in self._now)
        if not (added or changed or removed):
            return None
        return WatchUpdate(
            watch_id=watch_id,
            index_version=self.index_version,
            added=tuple(added),
            changed=tuple(changed),
            removed=removed,
        )


class Recommended:
    """What is recommended to a user: the newest is told, as a whole."""

    def __init__(self, collection: str, user_id: str) -> None:
        self._collection = collection
        self._user_id = user_id
        self.index_version = 0
        self.query: bytes | None = None
        self._whole: Watching | None = None
        self._told: tuple[str, ...] = ()
        self._news: RecommendationUpdate | None = None

    def start(self, whole: Watching, at: int) -> None:
        self._whole = whole
        self.index_version = whole.index_version
        ids = tuple(item.id for item in whole.results)
        if ids == self._told and self._news is None:
            return
        self._news = RecommendationUpdate(
            collection=self._collection,
            user_id=self._user_id,
            recommendations=ids,
            scores=tuple(item.score for item in whole.results),
            timestamp=iso(at),
        )

    def follow(self, update: WatchUpdate | RecommendationUpdate) -> None:
        assert isinstance(update, RecommendationUpdate), "it is about a user"
        self._news = update

    def first(self, watch_id: str, form: Form) -> Watching:
        assert self._whole is not None, "it has been started"
        whole, self._whole, self._news = self._whole, None, None
        self._told = tuple(item.id for item in whole.results)
        return _first(whole, watch_id, form)

    def news(self, watch_id: str, form: Form) -> RecommendationUpdate | None:  # noqa: ARG002 - it has ids and scores alone
        self._whole = None
        news, self._news = self._news, None
        if news is None:
            return None
        self._told = news.recommendations
        return RecommendationUpdate(
            watch_id=watch_id,
            collection=self._collection,
            user_id=self._user_id,
            recommendations=news.recommendations,
            scores=news.scores,
            timestamp=news.timestamp,
        )


def _place(item: Item) -> tuple[float, str]:
    return -item.score, item.id


def _first(whole: Watching, watch_id: str, form: Form) -> Watching:
    return Watching(
        watch_id=watch_id,
        collection=whole.collection,
        index_version=whole.index_version,
        exact=whole.exact,
        results=tuple(WatchResult(id=item.id, score=item.score, **_shown(item, form)) for item in whole.results),
    )


def _item(item: Item, rank: int, form: Form) -> WatchItem:
    return WatchItem(id=item.id, score=item.score, rank=rank, **_shown(item, form))


def _shown(item: Item, form: Form) -> Mapping[str, Any]:
    return {
        "metadata": form.metadata(item.metadata),
        "content": item.content,
        "vector": None if item.vector is None else form.vector(item.vector),
    }

"""What an edge tells of a watch, against a client that applies it: however seldom it is told, its list is the host's."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.node.forms import FOR_EDGE, ForClient
from gateway.node.relayed import Recommended, TopK
from gateway.protocol.codec import JSON
from gateway.protocol.messages import RecommendationUpdate, Watching, WatchItem, WatchResult, WatchUpdate

FORM = ForClient(JSON)
K = 3

Documents = dict[str, tuple[float, int]]
"""By id: score and version."""

_IDS = st.sampled_from("abcdefg")
_CHANGES = st.lists(st.tuples(_IDS, st.one_of(st.none(), st.integers(0, 4))), max_size=4)
_STEPS = st.lists(
    st.tuples(_CHANGES, st.sampled_from(["tell", "wait", "lose host", "lose host and tell"])), max_size=20
)


class Host:
    """Tells of the nearest of its documents."""

    def __init__(self) -> None:
        self.index_version = 0
        self.documents: Documents = {}
        self.versions = 0

    def change(self, changes: list[tuple[str, int | None]]) -> None:
        for document_id, score in changes:
            self.index_version += 1
            self.versions += 1
            if score is None:
                self.documents.pop(document_id, None)
            else:
                self.documents[document_id] = (float(score), self.versions)

    def top(self) -> list[tuple[str, float, int]]:
        ranked = sorted((-score, document_id, version) for document_id, (score, version) in self.documents.items())
        return [(document_id, -score, version) for score, document_id, version in ranked[:K]]

    def whole(self) -> Watching:
        items = tuple(WatchResult(**shown(*one)) for one in self.top())
        return Watching(watch_id="7", collection="m", index_version=self.index_version, exact=False, results=items)

    def update(self, before: list[tuple[str, float, int]]) -> WatchUpdate:
        known = {document_id: (score, version) for document_id, score, version in before}
        ranked = {one[0]: WatchItem(rank=rank, **shown(*one)) for rank, one in enumerate(self.top(), 1)}
        now = {document_id: (score, version) for document_id, score, version in self.top()}
        return WatchUpdate(
            watch_id="7",
            index_version=self.index_version,
            added=tuple(item for i, item in ranked.items() if i not in known),
            changed=tuple(item for i, item in ranked.items() if i in known and known[i] != now[i]),
            removed=tuple(i for i in known if i not in now),
        )


def shown(document_id: str, score: float, version: int) -> dict[str, Any]:
    return {"id": document_id, "score": score, "version": version, "metadata": json.dumps({"version": version})}


class Client:
    """Holds what it was told: by id, score and the version in its metadata."""

    def __init__(self, first: Watching) -> None:
        said = msgspec.json.decode(JSON.encode(first))
        assert said["watch_id"] == "w1"
        self.held = {item["id"]: item for item in said["results"]}

    def apply(self, update: WatchUpdate) -> None:
        said = msgspec.json.decode(JSON.encode(update))
        for document_id in said["removed"]:
            del self.held[document_id]
        for item in said["added"]:
            assert item["id"] not in self.held
        for item in said["changed"]:
            assert item["id"] in self.held
        for item in (*said["added"], *said["changed"]):
            assert "version" not in item
            self.held[item["id"]] = item
        ids = [document_id for document_id, _, _ in self.top()]
        assert all(ids[item["rank"] - 1] == item["id"] for item in (*said["added"], *said["changed"]))

    def top(self) -> list[tuple[str, float, int]]:
        held = [(i, item["score"], item["metadata"]["version"]) for i, item in self.held.items()]
        return sorted(held, key=lambda one: (-one[1], one[0]))


@given(_CHANGES, _STEPS)
def test_a_client_holds_the_hosts_list_after_each_difference(
    start: list[tuple[str, int | None]], steps: list[tuple[list[tuple[str, int | None]], str]]
) -> None:
    host, told = Host(), TopK()
    host.change(start)
    told.start(host.whole(), 0)
    client = Client(told.first("w1", FORM))
    assert client.top() == host.top()
    for changes, then in steps:
        before = host.top()
        host.change(changes)
        if then.startswith("lose host"):
            told.start(host.whole(), 0)
        else:
            told.follow(host.update(before))
        if then.endswith("tell"):
            same = client.top() == host.top()
            news = told.news("w1", FORM)
            assert (news is None) == same, "what has changed back isn't told"
            if news is not None:
                assert news.index_version == host.index_version
                client.apply(news)
            assert client.top() == host.top()
            assert told.news("w1", FORM) is None


def _list(*ids: str) -> Watching:
    items = tuple(WatchResult(id=i, score=1.0, metadata="{}") for i in ids)
    return Watching(watch_id="7", collection="m", index_version=1, exact=False, results=items)


def _update(*ids: str) -> RecommendationUpdate:
    return RecommendationUpdate(
        watch_id="7", collection="m", user_id="ann", recommendations=ids, scores=(1.0,) * len(ids), timestamp="t"
    )


def test_of_recommendations_the_newest_is_told() -> None:
    told = Recommended("m", "ann")
    told.start(_list("a", "b"), 0)
    assert [item.id for item in told.first("w1", FORM).results] == ["a", "b"]
    assert told.news("w1", FORM) is None
    told.follow(_update("b", "c"))
    told.follow(_update("c", "d"))
    news = told.news("w1", FORM)
    assert news is not None
    assert (news.watch_id, news.recommendations, news.timestamp) == ("w1", ("c", "d"), "t")
    assert told.news("w1", FORM) is None


def test_of_recommendations_another_hosts_are_told_where_they_are_others() -> None:
    told = Recommended("m", "ann")
    told.start(_list("a", "b"), 0)
    told.first("w1", FORM)
    told.start(_list("a", "b"), 0)
    assert told.news("w1", FORM) is None
    told.follow(_update("a", "b"))
    told.start(_list("a", "b"), 0)
    assert told.news("w1", FORM) is not None, "the user did something"
    told.start(_list("a"), 0)
    news = told.news("w1", FORM)
    assert news is not None
    assert (news.recommendations, news.timestamp) == (("a",), "1970-01-01T00:00:00.000000+00:00")


def test_nodes_tell_each_other_what_is_stored() -> None:
    assert (FOR_EDGE.metadata('{"a": 1}'), FOR_EDGE.vector(b"1234"), FOR_EDGE.version(5)) == ('{"a": 1}', b"1234", 5)
    assert FOR_EDGE.query(np.array([1, 2], np.float32)) == b"\0\0\x80\x3f\0\0\0\x40"

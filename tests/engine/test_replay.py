"""Writes that one node prepares and another applies; and net changes that one takes over from another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.engine.collection import Collection
from gateway.engine.copying import Copying
from gateway.engine.plan import HeldBack
from gateway.engine.replay import Proposal, Sequenced
from gateway.engine.search import Query
from gateway.engine.types import BatchComplete, Change, Document, Done, Patch, Put, Remove, Status, Write
from gateway.errors import Conflict
from tests.engine.support import SPEC, clock, make, nearest, put, reopen, vector, vectors, write

EPOCH = "e" * 32


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Collection, Collection]]:
    one, other = make(tmp_path / "one", epoch=EPOCH), make(tmp_path / "other", epoch=EPOCH)
    yield one, other
    one.close()
    other.close()


def shared(writes: list[Write], *collections: Collection) -> list[Done]:
    """Prepare at the first, and apply at all."""
    prepared = collections[0].writer.prepare(writes, "o", range(len(writes)))
    batch = sequenced(collections[0], tuple(prepared.proposals[i] for i in sorted(prepared.proposals)))
    ended = [collection.writer.replay([batch])[1] for collection in collections]
    assert all(one == ended[0] for one in ended)
    return list(ended[0])


def sequenced(collection: Collection, proposals: tuple[Proposal, ...]) -> Sequenced:
    first = collection.index_version + 1
    changes = sum(len(proposal.entries) for proposal in proposals)
    return Sequenced(first, first + changes - 1, proposals)


def test_what_is_prepared_changes_nothing_yet(pair: tuple[Collection, Collection]) -> None:
    one, _ = pair
    prepared = one.writer.prepare([write(put("a", 1, 2, 3, 4))], "o", [1])
    assert (prepared.index_version, one.index_version, one.get("a")) == (0, 0, None)
    (proposal,) = prepared.proposals.values()
    assert (proposal.origin, proposal.number, [entry.id for entry in proposal.entries]) == ("o", 1, ["a"])


def test_both_hold_the_same_after_each_kind_of_change(pair: tuple[Collection, Collection]) -> None:
    one, other = pair
    for writes in (
        [write(put("a", 1, 2, 3, 4, metadata={"x": 1}), put("b", 4, 3, 2, 1))],
        [Write((Patch("a", {"y": 2}),)), write(put("b", 1, 1, 1, 1))],
        [write(Remove("a")), write(put("a", 9, 9, 9, 9))],
        [write(put("c", 1, 0, 0, 0), put("d", 0, 1, 0, 0), atomic=True, event_id="e")],
    ):
        shared(writes, one, other)
        assert one.digest() == other.digest()
    assert nearest(other, 9, 9, 9, 9, k=1) == ["a"]
    found = other.get("a")
    assert found is not None
    assert found[0].version == 4


def test_a_proposal_finds_another_place_than_it_was_prepared_for(pair: tuple[Collection, Collection]) -> None:
    one, other = pair
    prepared = one.writer.prepare([write(put("a", 1, 2, 3, 4), put("b", 1, 1, 1, 1), atomic=True)], "o", [1])
    shared([write(put(f"before{i}", 1, 2, 3, 4)) for i in range(3)], *pair)
    for collection in pair:
        applied, (done,) = collection.writer.replay([sequenced(collection, tuple(prepared.proposals.values()))])
        assert done.index_version == 5
        assert isinstance(applied.events[-1], BatchComplete)
        assert applied.events[-1].first_index_version == 4
    assert one.digest() == other.digest()
    assert [d.created for d in documents(other) if d.id == "b"] == [5]


def documents(collection: Collection) -> list[Document]:
    return [change.document for change in collection.copy(0, 1000).changes]


def test_events_tell_what_was_there_before_on_each_node(pair: tuple[Collection, Collection]) -> None:
    one, other = pair
    shared([write(put("a", 1, 2, 3, 4, metadata={"x": 1}))], one, other)
    prepared = one.writer.prepare([Write((Patch("a", {"x": 2}),))], "o", [1])
    applied, _ = other.writer.replay([sequenced(other, tuple(prepared.proposals.values()))], with_vectors=True)
    (change,) = applied.events
    assert isinstance(change, Change)
    assert (change.event_type, change.before) == ("update", '{"x":1}')
    assert change.vector == vector(1, 2, 3, 4).tobytes()


def test_refused_and_unchanged_writes_are_no_proposals(pair: tuple[Collection, Collection]) -> None:
    one, _ = pair
    shared([write(put("a", 1, 2, 3, 4))], one)
    writes = [write(put("a", 1, 2, 3, 4)), write(put("a", 1, 1, 1, 1, if_version=9)), write(Remove("nobody"))]
    prepared = one.writer.prepare(writes, "o", range(3))
    assert not prepared.proposals
    same, conflict, missing = prepared.outcomes
    assert isinstance(same, Done)
    assert isinstance(conflict, Conflict)
    assert isinstance(missing, Done)
    assert (same.results[0].status, missing.results[0].status) == (Status.UNCHANGED, Status.MISSING)


def test_an_event_id_is_known_where_it_was_replayed(pair: tuple[Collection, Collection]) -> None:
    one, other = pair
    (done,) = shared([write(put("a", 1, 2, 3, 4), event_id="e")], one, other)
    (again,) = other.writer.prepare([write(put("a", 5, 5, 5, 5), event_id="e")], "p", [1]).outcomes
    assert isinstance(again, Done)
    assert (again.index_version, again.results[0].status) == (done.index_version, Status.DUPLICATE)


def test_an_event_id_twice_in_one_batch_waits_for_the_first(pair: tuple[Collection, Collection]) -> None:
    one, _ = pair
    writes = [write(put("a", 1, 2, 3, 4), event_id="e"), write(put("b", 1, 2, 3, 4), event_id="e"), write(Remove("b"))]
    _, second, third = one.writer.prepare(writes, "o", range(3)).outcomes
    assert isinstance(second, HeldBack)
    assert isinstance(third, HeldBack)


def test_an_event_id_of_what_changed_nothing_is_remembered(pair: tuple[Collection, Collection]) -> None:
    one, _ = pair
    shared([write(put("a", 1, 2, 3, 4))], one)
    one.writer.prepare([write(put("a", 1, 2, 3, 4), event_id="e")], "o", [1])
    (again,) = one.writer.prepare([write(put("a", 9, 9, 9, 9), event_id="e")], "o", [2]).outcomes
    assert isinstance(again, Done)
    assert again.results[0].status is Status.DUPLICATE


OPERATIONS = st.one_of(
    st.builds(lambda i, x: put(i, x, 1, 2, 3), st.sampled_from("abcd"), st.integers(0, 3)),
    st.builds(lambda i, x: Patch(i, {"x": x}), st.sampled_from("abcd"), st.integers(0, 3)),
    st.builds(Remove, st.sampled_from("abcd")),
)


@settings(max_examples=40)
@given(st.lists(st.lists(OPERATIONS, min_size=1, max_size=3), min_size=1, max_size=12), st.integers(1, 4))
def test_a_copy_at_any_moment_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, commits: list[list[Put | Patch | Remove]], limit: int
) -> None:
    """Pages are taken between commits, so that documents change while they are copied."""
    folder = tmp_path_factory.mktemp("copy")
    source, copy = make(folder / "source", epoch=EPOCH), make(folder / "copy", epoch=EPOCH)
    try:
        for operations in commits:
            source.commit([write(operation) for operation in operations])
            page = source.copy(copy.index_version, limit)
            copy.writer.adopt(page)
        more = True
        while more:
            page = source.copy(copy.index_version, limit)
            copy.writer.adopt(page)
            more = page.more
        assert source.digest() == copy.digest()
        assert source.document_count == copy.document_count
        everything = Query(vectors(vector(1, 1, 2, 3)), 10, exact=True)
        assert hits(source, everything) == hits(copy, everything)
        assert hits(copy, everything) == hits(copy, Query(vectors(vector(1, 1, 2, 3)), 10))
    finally:
        source.close()
        copy.close()


def hits(collection: Collection, query: Query) -> list[tuple[str, int]]:
    return [(hit.document.id, hit.document.version) for hit in collection.search(query).results[0]]


def test_a_finished_copy_is_a_collection(tmp_path: Path) -> None:
    source = make(tmp_path / "source", epoch=EPOCH)
    source.commit([write(put(f"d{i}", i, 1, 2, 3), event_id=f"e{i}") for i in range(100)])
    source.commit([write(Remove("d7"))])
    copying = Copying(tmp_path / "copy", SPEC, EPOCH, clock())
    more = True
    while more:
        page = source.copy(copying.index_version, 30)
        copying.adopt(page)
        more = page.more
    copying.finish(3, (), purged_through=50)
    copy = reopen(tmp_path / "copy")
    assert copy.digest() == source.digest()
    assert (copy.epoch, copy.writer.term, copy.index_version) == (EPOCH, 3, 101)
    assert nearest(copy, 50, 1, 2, 3, k=1) == ["d50"]
    assert not copy.reaches(49, EPOCH)
    assert copy.reaches(50, EPOCH)
    (again,) = copy.writer.prepare([write(put("d7", 1, 1, 1, 1))], "o", [1]).outcomes
    assert isinstance(again, Done)
    assert again.results[0].version == 3
    source.close()
    copy.close()


def test_an_abandoned_copy_leaves_nothing(tmp_path: Path) -> None:
    copying = Copying(tmp_path / "copy", SPEC, EPOCH, clock())
    copying.abandon()
    assert not (tmp_path / "copy").exists()

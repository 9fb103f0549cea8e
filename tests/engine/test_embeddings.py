"""The vectors of texts embedded before: what comes again needs no model, after a restart either."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gateway.engine import embeddings
from gateway.engine.collection import Collection
from gateway.engine.plan import HeldBack
from gateway.engine.store import STORE_FILE, Store
from gateway.engine.types import Done, Metric, NeedsVectors, Patch, Put, Remove, Spec, Status, Write
from tests.engine.support import make, outcomes, reopen, vector, write

SPEC = Spec("texts", 4, Metric.COSINE, "model", model_identity="m@4")


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return make(tmp_path / "texts", SPEC)


def embedded(collection: Collection, *operations: Put | Patch | Remove, **vectors: float) -> Done:
    """Commit with vectors for the texts named."""
    sent = write(*operations)
    sent.vectors.update({text: vector(1, number, 0, 0) for text, number in vectors.items()})
    (done,) = outcomes(collection, sent)
    assert isinstance(done, Done), done
    return done


def test_a_text_seen_before_needs_no_model_even_when_its_document_is_gone(collection: Collection) -> None:
    embedded(collection, Put("a", content="red"), red=7)
    embedded(collection, Remove("a"))
    done = embedded(collection, Put("b", content="red"))
    assert done.results[0].status is Status.INSERTED
    found = collection.get("b", include_vector=True)
    assert found is not None
    assert found[1] == vector(1, 7, 0, 0).tobytes()
    assert (collection.writer.found.texts, collection.writer.found.size_bytes) == (1, 3)


def test_it_is_remembered_through_a_restart(collection: Collection, tmp_path: Path) -> None:
    embedded(collection, Put("a", content="red"), red=7)
    collection.close()
    again = reopen(tmp_path / "texts")
    embedded(again, Put("a", content="blue"), blue=8)
    assert embedded(again, Put("a", content="red")).results[0].status is Status.UPDATED
    again.close()


def test_a_text_never_seen_asks_for_its_vector_and_those_behind_it_say_what_they_will_need(
    collection: Collection,
) -> None:
    embedded(collection, Put("x", content="red"), red=7)
    first, second, third = outcomes(
        collection, write(Put("a", content="new")), write(Put("a", content="newer")), write(Put("a", content="red"))
    )
    assert first == NeedsVectors(("new",))
    assert second == HeldBack(("newer",))
    assert third == HeldBack(), "its vector is there"


def test_what_is_unchanged_counts_as_spared_and_needs_nothing(collection: Collection) -> None:
    embedded(collection, Put("a", metadata={"name": "red", "price": 1}), red=7)
    (same,) = outcomes(collection, write(Put("a", metadata={"price": 1, "name": "red"})))
    assert isinstance(same, Done)
    assert same.results[0].status is Status.UNCHANGED
    embedded(collection, Patch("a", {"price": 2}))
    assert collection.writer.kept.texts == 2
    assert collection.writer.spared.size_bytes == 6


def test_a_producers_own_vector_is_nobodys_embedding(collection: Collection) -> None:
    embedded(collection, Put("a", vector(1, 2, 3, 4), content="red"))
    assert outcomes(collection, write(Put("b", content="red"))) == [NeedsVectors(("red",))]


def test_a_refused_commit_notes_nothing(collection: Collection) -> None:
    embedded(collection, Put("a", content="red"), red=7)
    sent = write(Put("b", content="blue"), Put("a", content="red", if_version=9))
    sent.vectors["blue"] = vector(1, 8, 0, 0)
    (refused,) = outcomes(collection, sent)
    assert not isinstance(refused, Done)
    assert outcomes(collection, write(Put("c", content="blue"))) == [NeedsVectors(("blue",))]


def test_another_model_has_vectors_of_its_own(tmp_path: Path) -> None:
    keys = []
    for identity in ("one@4", "two@4"):
        path = tmp_path / identity
        collection = make(path, Spec("texts", 4, Metric.COSINE, "model", model_identity=identity))
        embedded(collection, Put("a", content="red"), red=7)
        collection.close()
        keys.append(Store(path / STORE_FILE)._connection.execute("SELECT text_hash FROM embeddings").fetchone()[0])
    assert keys[0] != keys[1]


def test_a_crash_takes_none_of_them(collection: Collection, tmp_path: Path) -> None:
    """They are written with every so many of them; what was committed tells the rest."""
    embedded(collection, Put("a", content="red"), red=7)
    embedded(collection, Put("b", content="blue"), blue=8)
    embedded(collection, Patch("b", {"price": 1}))
    shutil.copytree(tmp_path / "texts", tmp_path / "crashed")
    again = reopen(tmp_path / "crashed")
    assert set(again._store.embedded(["red", "blue", "green"])) == {"red", "blue"}
    again.close()


def test_the_oldest_go_first_save_those_that_came_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "WRITTEN_TOGETHER", 1)
    path = tmp_path / "texts"
    collection = make(path, SPEC)
    collection._store._embeddings._most = 4
    for number, text in enumerate("abcd"):
        embedded(collection, Put(text, content=text), **{text: number})
    embedded(collection, Put("again", content="a"))
    for number, text in enumerate("efg"):
        embedded(collection, Put(text, content=text), **{text: number})
    found = collection._store.embedded(list("abcdefg"))
    assert set(found) == {"a", "e", "f", "g"}
    collection.close()


def test_a_document_changed_twice_in_one_write_embeds_both_texts_in_one_go(collection: Collection) -> None:
    assert outcomes(
        collection, Write((Put("a", content="one"), Put("b", content="two"), Put("a", content="three")))
    ) == [NeedsVectors(("one", "two", "three"))]


def test_the_same_text_by_another_way_keeps_the_vector_whoever_watches(tmp_path: Path) -> None:
    """It was a change or none, depending on whether a subscriber had asked for vectors."""
    versions = []
    for with_vectors in (False, True):
        collection = make(tmp_path / str(with_vectors), SPEC)
        embedded(collection, Put("a", metadata={"name": "lamp"}), lamp=7)
        (done,) = collection.writer.commit([write(Put("a", content="lamp"))], with_vectors=with_vectors).outcomes
        assert isinstance(done, Done)
        (patched,) = collection.writer.commit(
            [write(Patch("a", {"name": "chair"}))], with_vectors=with_vectors
        ).outcomes
        assert isinstance(patched, Done), "its content is the producer's own by now"
        found = collection.get("a", include_vector=True)
        assert found is not None
        versions.append((found[0].version, found[0].content, found[1]))
        collection.close()
    assert versions[0] == versions[1] == (3, "lamp", vector(1, 7, 0, 0).tobytes())

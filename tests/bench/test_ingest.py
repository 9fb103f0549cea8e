"""The benchmark of texts runs, counts and checks. Its figures decide nothing here."""

from __future__ import annotations

import json
from pathlib import Path

import msgpack
import numpy as np
import pytest

from bench import __main__ as command
from bench import ingest
from bench.ingest import faults, local, processes
from bench.ingest.again import Again, Counted
from bench.ingest.clients import COLLECTION, Producers, frame
from bench.ingest.local import INSERTED, all_there
from bench.ingest.processes import LOCAL, SERVICE, gateway, provider
from bench.ingest.texts import DIMENSION, Texts, ready_vectors
from bench.provider import vector_of


@pytest.mark.timeout(240)
def test_a_small_run_writes_every_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "EVENTS", 400)
    monkeypatch.setattr(ingest, "ALONE", 20)
    monkeypatch.setattr(ingest, "BATCHES", 3)
    monkeypatch.setattr(ingest, "AGAIN", 400)
    monkeypatch.setattr(ingest, "RATE", 100.0)
    monkeypatch.setattr(ingest, "FAULTY_EVENTS", 300)
    monkeypatch.setattr(ingest, "BURST", 2000)
    monkeypatch.setattr(ingest, "ROUNDS", 1)
    monkeypatch.setattr(ingest, "STEADY_S", 1.0)
    monkeypatch.setattr(local, "WARM_UP", 50)
    monkeypatch.setattr(processes, "_WINDOW_S", 0.1)
    command.main(["ingest", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "ingest.json").read_text())
    by_name = {target["name"]: target for target in report["targets"]}
    assert len(by_name) == 14
    for counted in ("texts embedded before: texts embedded", "documents of the burst that are missing"):
        assert by_name[counted]["met"], counted
    sections = [one["section"] for one in report["results"]]
    assert set(sections) == {"throughput", "model alone", "alone", "again", "steady", "faults", "burst"}
    faulty = [one for one in report["results"] if one["section"] == "faults"]
    assert [one["events"] for one in faulty] == [300, 60]
    for one in faulty:
        assert one["acknowledged"] + sum(one["refused"].values()) + one["unanswered"] == one["events"]
        assert one["service"]["calls"] > one["service"]["answered"]
    (steady,) = (one for one in report["results"] if one["section"] == "steady" and one["model"] == SERVICE)
    assert steady["room_ms"][0]["count"] == 100
    assert all(times["p50"] > ingest.LATENCY_MS for times in steady["room_ms"])


def test_texts_are_different_and_follow_from_the_seed() -> None:
    texts = Texts(1)
    count = texts.movies
    found = texts.take(3 * count)
    assert len(set(found)) == len(found)
    assert found[:100] == Texts(1).take(100)
    assert found[:100] != Texts(2).take(100)
    assert not any(any(part.strip().isdigit() for part in text.split("|")) for text in found[:1000])
    np.testing.assert_allclose(np.linalg.norm(ready_vectors()[:100], axis=1), 1, atol=1e-5)


async def test_new_texts_are_counted_as_embedded_and_known_ones_are_not() -> None:
    texts = Texts(1).take(40)
    with provider() as service, gateway(service) as subject:
        for model in (LOCAL, SERVICE):
            collection = f"{COLLECTION}-{model}"
            await subject.make(collection, model)
            counted, again = Counted(subject, service if model == SERVICE else None), Again()
            async with Producers.connected(subject.ws, 2) as producers:
                for number in range(2):
                    frames = [
                        frame("upsert", collection=collection, id=f"{number}-{n}", content=text)
                        for n, text in enumerate(texts)
                    ]
                    await counted.time(again, producers, frames, INSERTED)
            assert again.embedded == [40, 0]


async def test_an_answer_that_is_not_the_expected_one_stops_the_benchmark() -> None:
    with gateway() as subject:
        await subject.make(COLLECTION, LOCAL)
        frames = [frame("upsert", id="d0", content="a quiet film")]
        async with Producers.connected(subject.ws, 1) as producers:
            await producers.write(frames, 1, INSERTED)
            await all_there(subject, 1, [{"id": "d0", "content": "a quiet film"}])
            with pytest.raises(ExceptionGroup) as raised:
                await producers.write(frames, 1, INSERTED)
        assert "unchanged" in str(raised.value.exceptions[0])
        with pytest.raises(RuntimeError, match="2 documents were acknowledged, 1 are there"):
            await all_there(subject, 2, [])
        with pytest.raises(RuntimeError, match="its text finds"):
            await all_there(subject, 1, [{"id": "d1", "content": "a loud film"}])


def test_the_peak_of_memory_is_forgotten_and_found_again() -> None:
    with gateway() as subject:
        processes.forget_peak(subject.pid)
        now, peak = (processes.memory_mib(subject.pid, name) for name in ("VmRSS", "VmHWM"))
        assert peak == pytest.approx(now, abs=4)


def _told() -> faults.Story:
    """Return what producers were told of a document that got three texts, the second of which was refused."""
    others = ["x"] * (faults.BLOCK - 1)
    story = faults.Story(["first", *others, "second", *others, "third"])
    for ref, reply in (
        (2 * faults.BLOCK, {"type": "ack"}),
        (0, {"type": "ack"}),
        (faults.BLOCK, {"type": "error", "code": "embedding_unavailable"}),
    ):
        story.replied(msgpack.packb({"ref": ref, **reply}))
    return story


def _document(content: str, version: int, embedded: str | None = None) -> dict[str, object]:
    vector = vector_of(embedded or content, DIMENSION)
    return {"document_id": "d0-0", "content": content, "version": version, "vector": vector.tobytes()}


@pytest.mark.parametrize(
    ("stored", "wrong", "twice"),
    [
        ([("third", 2)], 0, 0),
        ([], 1, 0),
        ([("third", 2, "first")], 1, 0),
        ([("second", 2)], 1, 0),
        ([("third", 3)], 0, 1),
    ],
    ids=["what was told", "missing", "another text's vector", "a refused text", "one version too many"],
)
def test_what_is_stored_otherwise_than_told_is_counted(
    stored: list[tuple[str, int] | tuple[str, int, str]], wrong: int, twice: int
) -> None:
    story = _told()
    for version, text in enumerate(("first", "third"), 1):
        story.happened(_document(text, version))
    documents = [_document(*one) for one in stored]
    assert (story.wrong(documents), story.twice(documents)) == (wrong, twice)
    assert (story.acknowledged, dict(story.refused)) == (2, {"embedding_unavailable": 1})


@pytest.mark.parametrize(
    ("room", "wrong", "twice"),
    [
        ([("first", 1), ("third", 2), ("third", 2)], 0, 1),
        ([("first", 1)], 0, 1),
        ([("second", 1), ("third", 2)], 1, 0),
        ([("first", 1, "third"), ("third", 2)], 1, 0),
    ],
    ids=["an event twice", "an event missing", "a refused text", "another text's vector"],
)
def test_what_the_room_was_told_otherwise_is_counted(
    room: list[tuple[str, int] | tuple[str, int, str]], wrong: int, twice: int
) -> None:
    story = _told()
    for event in room:
        story.happened(_document(*event))
    stored = [_document("third", 2)]
    assert (story.wrong(stored), story.twice(stored)) == (wrong, twice)

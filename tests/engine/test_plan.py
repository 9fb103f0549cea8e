"""What writes make of what is stored, without a store."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.engine.merge import Stored, patched
from gateway.engine.plan import HeldBack, Plan, Planner, plan
from gateway.engine.types import (
    BatchComplete,
    Change,
    Document,
    Done,
    EventType,
    Metric,
    NeedsVectors,
    Operation,
    Patch,
    Put,
    Remove,
    Source,
    Spec,
    Status,
    Write,
)
from gateway.errors import Conflict, InvalidArgument, NotFound
from tests.engine.support import SPEC, put, vector, write

MODEL_SPEC = Spec("texts", 4, Metric.COSINE, "model")


def stored(
    document_id: str = "a",
    version: int = 3,
    metadata: dict[str, Any] | None = None,
    content: str | None = None,
    source: Source = Source.VECTOR,
    *,
    deleted: bool = False,
) -> dict[str, Stored]:
    text = msgspec.json.encode(metadata or {}).decode()
    label = None if deleted else 7
    document = Document(document_id, version, 9, 7, label, source, 0, text, content)
    return {document_id: Stored(document, None if deleted else vector(1, 2, 3, 4).tobytes())}


def run(
    *writes: Write, there: dict[str, Stored] | None = None, spec: Spec = SPEC, recorded: dict[str, Done] | None = None
) -> Plan:
    return plan(Planner(spec, there or {}, recorded or {}, 100, 0, lambda: 42, {}), writes)


def one(operation: Operation, there: dict[str, Stored] | None = None, spec: Spec = SPEC) -> Plan:
    return run(write(operation), there=there, spec=spec)


def change(planned: Plan, at: int = 0) -> Change:
    event = planned.events[at]
    assert isinstance(event, Change)
    return event


def status(planned: Plan, at: int = 0) -> tuple[Status, int]:
    done = planned.outcomes[at]
    assert isinstance(done, Done), done
    return done.results[0].status, done.results[0].version


def test_the_first_write_inserts_version_one_under_the_next_index_version() -> None:
    planned = one(put("a", 1, 2, 3, 4, metadata={"x": 1}))
    assert status(planned) == (Status.INSERTED, 1)
    document = change(planned).document
    assert (document.version, document.index_version, document.vector_version, document.created) == (1, 101, 101, 101)
    assert change(planned).event_type is EventType.INSERT
    assert planned.index_version == 101


def test_metadata_alone_keeps_the_label() -> None:
    planned = one(put("a", metadata={"x": 1}), stored())
    assert status(planned) == (Status.UPDATED, 4)
    assert change(planned).document.vector_version == 7
    assert change(planned).before == "{}"


def test_fields_left_out_keep_what_is_stored() -> None:
    planned = one(Put("a", content="new text"), stored(metadata={"x": 1}, content="old"))
    document = change(planned).document
    assert (document.metadata, document.content, document.vector_version) == ('{"x":1}', "new text", 7)


def test_the_same_again_is_unchanged_whatever_the_order_of_keys() -> None:
    there = stored(metadata={"x": 1, "y": 2})
    planned = one(put("a", 1, 2, 3, 4, metadata={"y": 2, "x": 1}), there)
    assert status(planned) == (Status.UNCHANGED, 3)
    assert not planned.events
    assert planned.index_version == 100


def test_true_and_one_are_not_the_same() -> None:
    assert status(one(put("a", metadata={"x": True}), stored(metadata={"x": 1}))) == (Status.UPDATED, 4)


def test_a_new_vector_alone_is_a_refresh() -> None:
    planned = one(put("a", 4, 3, 2, 1), stored())
    assert change(planned).event_type is EventType.REFRESH
    assert status(planned) == (Status.UPDATED, 4)
    assert change(planned).document.vector_version == 101


def test_a_version_is_not_used_again_after_a_delete() -> None:
    planned = run(write(Remove("a")), write(put("a", 1, 2, 3, 4)), there=stored())
    assert [status(planned, i) for i in (0, 1)] == [(Status.DELETED, 4), (Status.INSERTED, 5)]
    assert [change(planned, i).event_type for i in (0, 1)] == [EventType.DELETE, EventType.INSERT]
    assert change(planned, 1).document.created == 102


def test_deleting_what_is_not_there_changes_nothing() -> None:
    planned = run(write(Remove("a"), Remove("b")), there=stored("b", deleted=True))
    done = planned.outcomes[0]
    assert isinstance(done, Done)
    assert [(item.status, item.version) for item in done.results] == [(Status.MISSING, 0), (Status.MISSING, 3)]
    assert not planned.events


def test_if_version_zero_means_new() -> None:
    assert status(one(put("a", 1, 2, 3, 4, if_version=0)))[0] is Status.INSERTED
    assert status(one(put("a", 1, 2, 3, 4, if_version=0), stored(deleted=True)))[0] is Status.INSERTED


def test_a_conflict_tells_the_version_there_is() -> None:
    outcome = one(put("a", metadata={"x": 1}, if_version=2), stored()).outcomes[0]
    assert isinstance(outcome, Conflict)
    assert outcome.version == 3
    assert outcome.field == "if_version"


def test_one_bad_document_leaves_out_the_whole_write_and_no_other() -> None:
    bad = write(put("b", 1, 2, 3, 4), put("a", metadata={}, if_version=99), put("c", 1, 2, 3, 4))
    planned = run(write(put("x", 1, 2, 3, 4)), bad, write(put("b", 4, 3, 2, 1)), there=stored())
    assert isinstance(planned.outcomes[1], Conflict)
    assert [change(planned, i).document.id for i in range(len(planned.events))] == ["x", "b"]
    assert [change(planned, i).document.index_version for i in range(2)] == [101, 102]


def test_a_patch_merges_and_null_removes() -> None:
    planned = one(Patch("a", {"x": None, "z": {"q": 1}}), stored(metadata={"x": 1, "y": 2, "z": {"p": 0}}))
    assert msgspec.json.decode(change(planned).document.metadata) == {"y": 2, "z": {"p": 0, "q": 1}}


def test_patching_what_is_not_there_is_an_error() -> None:
    assert isinstance(one(Patch("a", {"x": 1})).outcomes[0], NotFound)
    assert isinstance(one(Patch("a", {"x": 1}), stored(deleted=True)).outcomes[0], NotFound)


@pytest.mark.parametrize(
    ("metadata", "changes", "result"),
    [
        # The test cases of RFC 7396, appendix A, whose documents are objects.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_patches_merge_as_the_rfc_says(metadata: Any, changes: Any, result: Any) -> None:
    assert patched(metadata, changes) == result


def test_content_waits_for_its_vector_and_is_not_embedded_twice() -> None:
    first = Write((Put("a", content="some text"),))
    planned = run(first, spec=MODEL_SPEC)
    assert planned.outcomes == [NeedsVectors(("some text",))]
    assert not planned.events
    first.vectors["some text"] = vector(1, 0, 0, 0)
    assert status(run(first, spec=MODEL_SPEC)) == (Status.INSERTED, 1)
    there = stored(content="some text", source=Source.CONTENT)
    assert status(one(Put("a", content="some text"), there, MODEL_SPEC)) == (Status.UNCHANGED, 3)
    changed = one(Put("a", content="some text", metadata={"x": 1}), there, MODEL_SPEC)
    assert change(changed).document.vector_version == 7


def test_text_fields_are_embedded_anew_only_when_they_change() -> None:
    there = stored(metadata={"name": "Shoe", "price": 1}, content="Shoe", source=Source.FIELDS)
    cheaper = one(Patch("a", {"price": 2}), there, MODEL_SPEC)
    assert status(cheaper) == (Status.UPDATED, 4)
    assert change(cheaper).document.vector_version == 7
    assert one(Patch("a", {"name": "Boot"}), there, MODEL_SPEC).outcomes == [NeedsVectors(("Boot",))]
    assert isinstance(one(Patch("a", {"name": None}), there, MODEL_SPEC).outcomes[0], InvalidArgument)


def test_a_document_needs_something_to_be_found_by() -> None:
    assert isinstance(one(put("a", metadata={"price": 1}), spec=MODEL_SPEC).outcomes[0], InvalidArgument)
    assert isinstance(one(Put("a", content="text")).outcomes[0], InvalidArgument), "no model, no vector"


def test_a_producers_vector_stays_when_its_fields_change() -> None:
    there = stored(metadata={"name": "Shoe"}, source=Source.VECTOR)
    assert change(one(Patch("a", {"name": "Boot"}), there, MODEL_SPEC)).document.vector_version == 7
    wanted = one(Put("a", metadata={"name": "Boot"}, from_fields=True), there, MODEL_SPEC)
    assert wanted.outcomes == [NeedsVectors(("Boot",))]


def test_later_writes_on_a_document_wait_for_its_embedding_and_others_pass() -> None:
    planned = run(
        write(Put("a", content="text"), put("b", 1, 2, 3, 4)),
        write(put("b", 4, 3, 2, 1)),
        write(put("c", 1, 2, 3, 4)),
        spec=MODEL_SPEC,
    )
    assert isinstance(planned.outcomes[0], NeedsVectors)
    assert isinstance(planned.outcomes[1], HeldBack)
    assert status(planned, 2) == (Status.INSERTED, 1)


def test_several_changes_of_one_document_in_a_write_build_on_each_other() -> None:
    insert = Write((Put("a", content="text"), Patch("a", {"x": 1}), Patch("a", {"y": 2})))
    assert run(insert, spec=MODEL_SPEC).outcomes == [NeedsVectors(("text",))]
    insert.vectors["text"] = vector(1, 0, 0, 0)
    planned = run(insert, spec=MODEL_SPEC)
    assert [change(planned, i).document.version for i in range(3)] == [1, 2, 3]
    assert msgspec.json.decode(change(planned, 2).document.metadata) == {"x": 1, "y": 2}


def test_an_atomic_write_is_closed_by_batch_complete() -> None:
    planned = run(write(put("a", 1, 2, 3, 4), put("b", 1, 2, 3, 4), atomic=True))
    assert planned.events[2] == BatchComplete(101, 102, 2, 42)
    assert planned.index_version == 102
    assert not run(write(Remove("a"), atomic=True)).events


def test_an_event_id_is_applied_once() -> None:
    first = write(put("a", 1, 2, 3, 4), event_id="e")
    again = write(put("a", 4, 4, 4, 4), event_id="e")
    planned = run(first, again)
    assert status(planned, 1) == (Status.DUPLICATE, 1)
    assert len(planned.events) == 1
    later = run(again, recorded=planned.recorded)
    assert status(later) == (Status.DUPLICATE, 1)
    assert not later.events


def test_a_failed_write_does_not_use_up_its_event_id() -> None:
    planned = run(write(Patch("a", {}), event_id="e"), write(put("a", 1, 2, 3, 4), event_id="e"))
    assert isinstance(planned.outcomes[0], NotFound)
    assert status(planned, 1) == (Status.INSERTED, 1)

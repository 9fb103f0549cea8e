"""The text that is embedded where a document has fields alone."""

from __future__ import annotations

from gateway.engine.text import build_text


def test_the_text_of_a_document_is_made_of_its_text_fields() -> None:
    fields = {"category": "Drama", "name": "Heat", "year": 1995, "tags": ["Crime", "Thriller"], "description": ""}
    assert build_text(fields) == "Heat | Drama | Crime, Thriller"
    assert not build_text({"year": 1995})


def test_fields_order_and_separator_are_the_collections_own() -> None:
    metadata = {
        "name": "Heat",
        "plot": {"long": "A thief", "short": "Thief"},
        "cast": [{"as": "Neil"}, {"as": "Vincent"}],
    }
    assert build_text(metadata, ("plot.long", "name", "cast.as"), "; ") == "A thief; Heat; Neil; Vincent"
    assert not build_text(metadata, ("plot", "nothing"))

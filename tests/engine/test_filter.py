from __future__ import annotations

import sqlite3
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine import database, filter_sql
from gateway.engine.filter import MAX_DEPTH, All, AnyOf, Compare, Condition, Exists, Filter, Not
from gateway.engine.filter_sql import MATCH_FUNCTION, sql_match
from gateway.engine.terms import Terms
from gateway.engine.types import Document, Source
from gateway.errors import InvalidFilter

METADATA = {
    "category": "Drama",
    "tags": ["Drama", "War"],
    "year": 1997,
    "price": 9.5,
    "sold": True,
    "maker": {"name": "Ada", "town": None},
    "variants": [{"colour": "red", "sizes": [1, 2]}, {"colour": "blue"}],
}


def matches(source: dict[str, Any], metadata: dict[str, Any] = METADATA) -> bool:
    """Return what predicate and SQL say, which has to be the same."""
    parsed = Filter(source)
    predicate = parsed.matches(metadata)
    assert predicate == by_sql(parsed, metadata, Terms(()))
    assert predicate == by_sql(parsed, metadata, Terms(sorted(paths(parsed.condition))))
    return predicate


def paths(condition: Condition) -> set[str]:
    match condition:
        case All(parts) | AnyOf(parts):
            return set().union(*map(paths, parts))
        case Not(part):
            return paths(part)
        case Compare(path) | Exists(path):
            return {".".join(path)}


def by_sql(parsed: Filter, metadata: dict[str, Any], terms: Terms) -> bool:
    """Ask SQLite, with these fields indexed."""
    text = msgspec.json.encode(metadata).decode()
    document = Document("d", 1, 1, 1, 1, Source.VECTOR, 0, text, None)
    connection = sqlite3.connect(":memory:")
    try:
        connection.create_function(MATCH_FUNCTION, 2, sql_match)
        connection.executescript(database.SCHEMA)
        row = (1, "d", 1, 1, 1, 1, 0, 0, text)
        connection.execute(
            "INSERT INTO documents(key, id, version, index_version, created, vector_version, source, updated_at, metadata)"
            " VALUES(?,?,?,?,?,?,?,?,?)",
            row,
        )
        connection.executemany("INSERT INTO terms(field, value, document) VALUES(?, ?, 1)", terms.of(document))
        sql, parameters = filter_sql.where(parsed.condition, "d.metadata", terms.sql)
        found = connection.execute(f"SELECT count(*) FROM documents d WHERE {sql}", parameters).fetchone()
        return bool(found[0])
    finally:
        connection.close()


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"category": "Drama"},
        {"category": {"$eq": "Drama"}},
        {"tags": "War"},
        {"year": {"$gte": 1990, "$lt": 2000}},
        {"year": 1997.0},
        {"price": {"$gt": 9}},
        {"category": {"$lt": "E"}},
        {"category": {"$in": ["Comedy", "Drama"]}},
        {"maker.name": "Ada"},
        {"maker.town": None},
        {"maker.town": {"$exists": True}},
        {"maker.street": {"$exists": False}},
        {"variants.colour": "blue"},
        {"variants.sizes": 2},
        {"variants.sizes": {"$exists": True}},
        {"sold": True},
        {"$or": [{"year": 1}, {"sold": True}]},
        {"$and": [{"tags": "War"}, {"tags": "Drama"}]},
        {"$not": {"tags": "Horror"}},
        {"year": {"$not": {"$lt": 1990}}},
    ],
)
def test_fits(source: dict[str, Any]) -> None:
    assert matches(source)


@pytest.mark.parametrize(
    "source",
    [
        {"category": "drama"},
        {"year": "1997"},
        {"sold": 1},
        {"year": True},
        {"maker": "Ada"},
        {"maker.town": "x"},
        {"missing": None},
        {"missing": {"$lt": 5}},
        {"category": {"$lt": 5}},
        {"maker.name.first": "Ada"},
        {"variants.colour": "green"},
        {"$and": [{"tags": "War"}, {"tags": "Horror"}]},
        {"$not": {"category": "Drama"}},
    ],
)
def test_does_not_fit(source: dict[str, Any]) -> None:
    assert not matches(source)


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ({"year": {"$foo": 1}}, "filter.year.$foo"),
        ({"$foo": 1}, "filter.$foo"),
        ({"year": {"a": 1}}, "filter.year.a"),
        ({"year": []}, "filter.year"),
        ({"year": {}}, "filter.year"),
        ({"tags": {"$in": "War"}}, "filter.tags.$in"),
        ({"tags": {"$in": []}}, "filter.tags.$in"),
        ({"tags": {"$in": [["War"]]}}, "filter.tags.$in[0]"),
        ({"a": {"$exists": 1}}, "filter.a.$exists"),
        ({"a": {"$lt": None}}, "filter.a.$lt"),
        ({"a": {"$lt": float("nan")}}, "filter.a.$lt"),
        ({"a": 2**70}, "filter.a"),
        ({"a": "x\0"}, "filter.a"),
        ({"a..b": 1}, "filter.a..b"),
        ({"": 1}, "filter."),
        ({"$and": []}, "filter.$and"),
        ({"$or": {"a": 1}}, "filter.$or"),
        ({"$or": [3]}, "filter.$or[0]"),
        ({"$not": 3}, "filter.$not"),
    ],
)
def test_says_what_is_wrong_and_where(source: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidFilter) as raised:
        Filter(source)
    assert raised.value.field == place
    assert place in raised.value.message


def test_depth_and_size_are_bounded() -> None:
    deep: dict[str, Any] = {"a": 1}
    for _ in range(MAX_DEPTH + 1):
        deep = {"$not": deep}
    with pytest.raises(InvalidFilter, match="deep"):
        Filter(deep)
    nested: dict[str, Any] = {"$eq": 1}
    for _ in range(MAX_DEPTH + 2):
        nested = {"$not": nested}
    with pytest.raises(InvalidFilter, match="deep"):
        Filter({"a": nested})
    with pytest.raises(InvalidFilter, match="more than"):
        Filter({"a": {"$in": list(range(1000))}})


def test_equal_filters_have_equal_keys() -> None:
    assert Filter({"a": 1, "b": 2}) == Filter({"b": 2, "a": 1})
    assert Filter({"a": 1}) != Filter({"a": True})


KEYS = st.sampled_from(["a", "b", 'q"', "back\\slash", "é", "with space", "it's"])
TEXT = st.sampled_from(["", "a", "b", "ab", "é", "𝄞", "1", "A", "\ufffd", "\U0010ffff", 'q"'])
NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-2, 2), st.floats(allow_nan=False, allow_infinity=False)
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
PATHS = st.lists(KEYS, min_size=1, max_size=3).map(".".join)
TESTS = st.one_of(
    SCALARS,
    SCALARS.map(lambda value: {"$eq": value}),
    st.lists(SCALARS, min_size=1, max_size=3).map(lambda values: {"$in": values}),
    st.booleans().map(lambda there: {"$exists": there}),
    st.dictionaries(st.sampled_from(["$lt", "$lte", "$gt", "$gte"]), NUMBERS | TEXT, min_size=1, max_size=2),
    SCALARS.map(lambda value: {"$not": {"$eq": value}}),
)
FILTERS = st.recursive(
    st.dictionaries(PATHS, TESTS, max_size=2),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$and": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$or": parts}),
        inner.map(lambda part: {"$not": part}),
    ),
    max_leaves=4,
)


@given(FILTERS, st.dictionaries(KEYS, JSON, max_size=4))
def test_sql_and_predicate_agree(source: dict[str, Any], metadata: dict[str, Any]) -> None:
    matches(source, metadata)


@given(PATHS, SCALARS, st.dictionaries(KEYS, JSON, max_size=4))
def test_sql_and_predicate_agree_on_values_that_are_there(path: str, value: Any, metadata: dict[str, Any]) -> None:
    """Plants the value where the filter looks, so that the agreement is not only about misses."""
    at = metadata
    *way, last = path.split(".")
    for key in way:
        inner = at.get(key)
        at[key] = at = inner if isinstance(inner, dict) else {}
    at[last] = value
    assert matches({path: value}, metadata)
    assert matches({path: {"$exists": True}}, metadata)

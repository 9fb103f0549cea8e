"""Filters as SQL over the store's rows: the same answers as their predicates."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from gateway.engine.filter import All, AnyOf, Compare, Condition, Exists, Not, kind, predicate

_PLAIN_KEY = re.compile(r'[^"\\\x00-\x1f]+')

MATCH_FUNCTION = "hotindex_match"
"""The SQL function (metadata, condition) -> 0 or 1 that stands in where SQLite's JSON paths don't reach."""

Indexed: TypeAlias = Callable[[Compare | Exists, list[Any]], str | None]
"""Returns SQL that answers one leaf from an index and appends its parameters, or None where there is no index."""


_TYPES: dict[type | None, str] = {float: "('integer','real')", str: "('text')"}


def where(condition: Condition, column: str, indexed: Indexed) -> tuple[str, list[Any]]:
    """Return an SQL expression over the JSON text in `column`, and its parameters."""
    parameters: list[Any] = []
    return _sql(condition, column, indexed, parameters), parameters


def _sql(condition: Condition, column: str, indexed: Indexed, parameters: list[Any]) -> str:
    match condition:
        case All(parts) | AnyOf(parts):
            word = " AND " if isinstance(condition, All) else " OR "
            neutral = "1" if isinstance(condition, All) else "0"
            return f"({word.join(_sql(part, column, indexed, parameters) for part in parts) or neutral})"
        case Not(part):
            return f"(NOT {_sql(part, column, indexed, parameters)})"
        case Compare() | Exists():
            return indexed(condition, parameters) or _sql_leaf(condition, column, parameters)


def _sql_leaf(leaf: Compare | Exists, column: str, parameters: list[Any]) -> str:
    if not all(_PLAIN_KEY.fullmatch(key) for key in leaf.path):
        return _sql_call(leaf, column, parameters)
    *steps, path = (_json_path(leaf.path[: i + 1]) for i in range(len(leaf.path)))
    through = _sql_call(leaf, column, parameters) if steps else ""
    if isinstance(leaf, Exists):
        direct = f"(json_type({column},{path}) IS NOT NULL)"
    else:
        direct = _sql_compare(leaf, column, path, parameters)
    if not steps:
        return direct
    arrays = " OR ".join(f"json_type({column},{step}) = 'array'" for step in steps)
    return f"(CASE WHEN {arrays} THEN {through} ELSE {direct} END)"


def _json_path(keys: tuple[str, ...]) -> str:
    path = "$" + "".join(f'."{key}"' for key in keys)
    return "'" + path.replace("'", "''") + "'"


def _sql_compare(leaf: Compare, column: str, path: str, parameters: list[Any]) -> str:
    types = _TYPES.get(kind(leaf.value))
    if types:
        parameters += [leaf.value, leaf.value]
        plain = f"WHEN json_type({column},{path}) IN {types} THEN json_extract({column},{path}) {leaf.operator} ?"
        element = f"e.type IN {types} AND e.atom {leaf.operator} ?"
    else:
        name = f"'{msgspec.json.encode(leaf.value).decode()}'"
        plain = f"WHEN json_type({column},{path}) = {name} THEN 1"
        element = f"e.type = {name}"
    array = (
        f"WHEN json_type({column},{path}) = 'array'"
        f" THEN EXISTS (SELECT 1 FROM json_each({column},{path}) e WHERE {element})"
    )
    return f"(CASE {plain} {array} ELSE 0 END)"


def _sql_call(condition: Compare | Exists, column: str, parameters: list[Any]) -> str:
    parameters.append(msgspec.json.encode(condition))
    return f"{MATCH_FUNCTION}({column}, ?)"


_LEAF = msgspec.json.Decoder(Compare | Exists)


def sql_match(metadata: str, condition: bytes) -> bool:
    """The body of MATCH_FUNCTION."""
    return predicate(_LEAF.decode(condition))(msgspec.json.decode(metadata))

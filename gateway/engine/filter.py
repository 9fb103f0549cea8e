"""The filter language over metadata, defined once: parsed here, run as SQL by the store and as a predicate by rooms.

    {"category": "Drama", "year": {"$gte": 1990, "$lt": 2000}, "$not": {"tags": "Horror"}}

A path names a value by its keys, joined by dots. Where the path meets an array, on its way or at its end, each element is
tried and one that fits is enough. `$eq` (or the bare value) and `$in` compare scalars of the same JSON type, `$lt`, `$lte`,
`$gt`, `$gte` numbers with numbers and strings with strings (by code point); a missing value fits none of them. `$exists`
asks whether the path leads anywhere. Keys of one object must all fit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from gateway.errors import InvalidFilter

MAX_DEPTH = 16
MAX_NODES = 256
MAX_PATH = 32
MAX_PATH_CHARACTERS = 1024

Scalar: TypeAlias = str | int | float | bool | None
Predicate: TypeAlias = Callable[[dict[str, Any]], bool]

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_OPERATORS = {"$eq": "=", "$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: Condition


class Compare(msgspec.Struct, frozen=True, tag=True):
    path: tuple[str, ...]
    operator: str
    value: Scalar


class Exists(msgspec.Struct, frozen=True, tag=True):
    path: tuple[str, ...]


Condition: TypeAlias = All | AnyOf | Not | Compare | Exists


class Filter:
    """A parsed filter. Two with the same `key` match the same metadata."""

    def __init__(self, source: dict[str, Any]) -> None:
        """Parse `source`. Raises InvalidFilter, which names the place at fault."""
        self.condition = _Parser().parse(source)
        self.key = msgspec.json.encode(source, order="sorted")
        self._matches = predicate(self.condition)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def matches(self, metadata: dict[str, Any]) -> bool:
        """Tell whether decoded metadata fits."""
        return self._matches(metadata)


class _Parser:
    def __init__(self) -> None:
        self._nodes = 0

    def parse(self, source: object, at: str = "filter", depth: int = 0) -> Condition:
        if not isinstance(source, dict):
            raise InvalidFilter(f"{at} must be an object, not {_show(source)}", field=at)
        if depth > MAX_DEPTH:
            raise InvalidFilter(f"{at} is nested more than {MAX_DEPTH} deep", field=at)
        return self._all([self._entry(key, value, at, depth) for key, value in source.items()], at)

    def _entry(self, key: str, value: object, where: str, depth: int) -> Condition:
        at = f"{where}.{key}"
        if key in ("$and", "$or"):
            if not isinstance(value, list) or not value:
                raise InvalidFilter(f"{at} must be a list of one filter or more, not {_show(value)}", field=at)
            parts = tuple(self.parse(part, f"{at}[{i}]", depth + 1) for i, part in enumerate(value))
            return All(parts) if key == "$and" else AnyOf(parts)
        if key == "$not":
            return Not(self.parse(value, at, depth + 1))
        if key.startswith("$"):
            raise InvalidFilter(f"{at} is no operator of this place; known are $and, $or, $not", field=at)
        path = tuple(key.split("."))
        if len(path) > MAX_PATH or len(key) > MAX_PATH_CHARACTERS:
            raise InvalidFilter(
                f"a path in {where} has {len(path)} keys and {len(key)} characters; it may have {MAX_PATH} and"
                f" {MAX_PATH_CHARACTERS}",
                field=where,
            )
        if not all(path):
            raise InvalidFilter(f"{at} has an empty key in its path", field=at)
        return self._tests(path, value, at, depth)

    def _tests(self, path: tuple[str, ...], value: object, at: str, depth: int) -> Condition:
        if not isinstance(value, dict):
            return self._compare(path, "=", value, at)
        if not value or depth > MAX_DEPTH:
            raise InvalidFilter(f"{at} has no operator, or is nested too deep", field=at)
        return self._all([self._test(path, op, operand, f"{at}.{op}", depth) for op, operand in value.items()], at)

    def _test(self, path: tuple[str, ...], op: str, operand: object, at: str, depth: int) -> Condition:
        if op in _OPERATORS:
            return self._compare(path, _OPERATORS[op], operand, at)
        if op == "$in":
            if not isinstance(operand, list) or not operand:
                raise InvalidFilter(f"{at} must be a list of one value or more, not {_show(operand)}", field=at)
            return AnyOf(tuple(self._compare(path, "=", one, f"{at}[{i}]") for i, one in enumerate(operand)))
        if op == "$exists":
            if not isinstance(operand, bool):
                raise InvalidFilter(f"{at} must be true or false, not {_show(operand)}", field=at)
            self._count(at)
            return Exists(path) if operand else Not(Exists(path))
        if op == "$not":
            return Not(self._tests(path, operand, at, depth + 1))
        known = ", ".join([*_OPERATORS, "$in", "$exists", "$not"])
        raise InvalidFilter(f"{at} is no operator; known are {known}", field=at)

    def _compare(self, path: tuple[str, ...], op: str, value: object, at: str) -> Condition:
        self._count(at)
        if not isinstance(value, str | int | float | None):
            raise InvalidFilter(f"{at} must be a string, a number, true, false or null, not {_show(value)}", field=at)
        if op != "=" and (value is None or isinstance(value, bool)):
            raise InvalidFilter(f"{at} must be a number or a string to compare with, not {_show(value)}", field=at)
        if isinstance(value, str) and "\0" in value:
            raise InvalidFilter(f"{at} holds a NUL character", field=at)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidFilter(f"{at} is {value}, beyond 64 bits", field=at)
        if isinstance(value, float) and value - value != 0:
            raise InvalidFilter(f"{at} is {value}, not a finite number", field=at)
        return Compare(path, op, value)

    def _all(self, parts: list[Condition], at: str) -> Condition:
        self._count(at)
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _count(self, at: str) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InvalidFilter(f"filter has more than {MAX_NODES} conditions (at {at})", field=at)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def predicate(condition: Condition) -> Predicate:
    """Return the test of decoded metadata that `condition` states."""
    match condition:
        case All(parts):
            tests = [predicate(part) for part in parts]
            return lambda metadata: all(test(metadata) for test in tests)
        case AnyOf(parts):
            tests = [predicate(part) for part in parts]
            return lambda metadata: any(test(metadata) for test in tests)
        case Not(part):
            inner = predicate(part)
            return lambda metadata: not inner(metadata)
        case Exists(path):
            return lambda metadata: next(reached(metadata, path), _MISSING) is not _MISSING
        case Compare(path, op, value):
            wanted, compare = kind(value), _COMPARE[op]
            return lambda metadata: any(
                kind(found) is wanted and compare(found, value)
                for there in reached(metadata, path)
                for found in (there if isinstance(there, list) else (there,))
            )


_MISSING = object()


def reached(value: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """Yield what `path` leads to from `value`, through the elements of arrays on its way."""
    for element in value if isinstance(value, list) else (value,):
        if isinstance(element, dict) and path[0] in element:
            if len(path) == 1:
                yield element[path[0]]
            else:
                yield from reached(element[path[0]], path[1:])


def kind(value: object) -> type | None:
    """Return what a value may be compared with: int and float are one kind, true and 1 are not."""
    if isinstance(value, bool):
        return bool
    if isinstance(value, int | float):
        return float
    if isinstance(value, str):
        return str
    return type(None) if value is None else None

"""From what clients send about collections and searches to the engine's values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import msgspec
import numpy as np

from gateway.embed.catalog import Models
from gateway.embed.embedder import Embedder
from gateway.engine import vectors
from gateway.engine.collection import Collection
from gateway.engine.filter import Filter
from gateway.engine.search import Query
from gateway.engine.types import Metric, Spec, Vector
from gateway.errors import HotindexError, InvalidArgument, InvalidMessage, NotFound
from gateway.protocol import checks, messages

_T = TypeVar("_T")
MAX_EF = 4096
MAX_VECTORS = 64
MAX_INDEXES = 16
MAX_TEXT_FIELDS = 16
MAX_SEPARATOR = 64


class CollectionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that makes a collection. What is left out is the default; `model` gives the dimension."""

    dimension: int | None = None
    metric: Metric | None = None
    model: str | None = None
    m: int | None = None
    ef_construction: int | None = None
    ef_search: int | None = None
    hot_rows: int | None = None
    indexes: tuple[str, ...] | None = None
    text_fields: tuple[str, ...] | None = None
    separator: str | None = None


def spec(name: str, settings: CollectionSettings, models: Models) -> Spec:
    """Return the spec of a new collection. Raises InvalidArgument."""
    dimension = settings.dimension
    identity = None
    if settings.model is not None:
        model = models.known(settings.model)
        if dimension not in (None, model.dimension):
            raise InvalidArgument(
                f"dimension is {dimension}; the model {settings.model!r} makes {model.dimension}", field="dimension"
            )
        dimension, identity = model.dimension, model.identity
    if dimension is None:
        raise InvalidArgument("a collection needs a dimension or a model", field="dimension")
    checks.between(dimension, 1, vectors.MAX_DIMENSION, "dimension")
    metric = settings.metric or Metric.COSINE
    made = Spec(name, dimension, metric, settings.model, model_identity=identity)
    return _with_fields(_graph(made, settings), settings)


def default_spec(name: str, models: Models) -> Spec:
    """Return the spec of a collection that a first write without vectors makes. Raises InvalidArgument."""
    if models.default is None:
        raise InvalidArgument(
            f"there is no collection {name!r}, and setting default_model is none: documents need vectors",
            field="vector",
        )
    return spec(name, CollectionSettings(model=models.default.name), models)


def forwarded_spec(name: str, body: bytes, models: Models) -> Spec:
    """Return the spec of a collection that another node asks to make. Raises InvalidMessage, InvalidArgument."""
    checks.collection_name(name)
    try:
        settings = msgspec.msgpack.decode(body, type=CollectionSettings)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidMessage(f"make: {error}") from None
    return spec(name, settings, models)


def settings_of(spec: Spec) -> CollectionSettings:
    """Return what makes a collection of this spec."""
    fields = {field: getattr(spec, field) for field in CollectionSettings.__struct_fields__}
    return CollectionSettings(**fields)


def respec(found: Spec, settings: CollectionSettings, models: Models) -> Spec:
    """Return the spec `settings` asks for where a collection exists: what is left out is as found."""
    asked = CollectionSettings(
        dimension=settings.dimension or (None if settings.model else found.dimension),
        metric=settings.metric or found.metric,
        model=settings.model or found.model,
        m=settings.m or found.m,
        ef_construction=settings.ef_construction or found.ef_construction,
        ef_search=settings.ef_search or found.ef_search,
        hot_rows=settings.hot_rows if settings.hot_rows is not None else found.hot_rows,
        indexes=settings.indexes if settings.indexes is not None else found.indexes,
        text_fields=settings.text_fields if settings.text_fields is not None else found.text_fields,
        separator=settings.separator if settings.separator is not None else found.separator,
    )
    return replace(spec(found.name, asked, models), model_identity=found.model_identity)


def describe(spec: Spec) -> str:
    """Return the settings of a collection for people."""
    settings = msgspec.to_builtins(spec)
    return ", ".join(
        f"{name} {value}"
        for name, value in settings.items()
        if name not in ("name", "model_identity") and value not in (None, [])
    )


def _graph(spec: Spec, settings: CollectionSettings) -> Spec:
    limits = {"m": (2, 128), "ef_construction": (4, 4096), "ef_search": (1, MAX_EF), "hot_rows": (0, 32_768)}
    given = {field: value for field in limits if (value := getattr(settings, field)) is not None}
    for field, value in given.items():
        checks.between(value, *limits[field], field)
    return replace(spec, **given)


def _with_fields(spec: Spec, settings: CollectionSettings) -> Spec:
    if settings.indexes is not None:
        checks.between(len(settings.indexes), 0, MAX_INDEXES, "the number of indexes")
        spec = replace(spec, indexes=_paths(settings.indexes, "indexes"))
    if settings.text_fields is not None:
        checks.between(len(settings.text_fields), 1, MAX_TEXT_FIELDS, "the number of text_fields")
        spec = replace(spec, text_fields=_paths(settings.text_fields, "text_fields"))
    if settings.separator is not None:
        checks.between(len(settings.separator), 0, MAX_SEPARATOR, "the length of separator")
        spec = replace(spec, separator=settings.separator)
    return spec


def _paths(paths: tuple[str, ...], field: str) -> tuple[str, ...]:
    for path in paths:
        if not all(path.split(".")):
            raise InvalidArgument(f"{field} holds {path!r}, which is no path of keys joined by dots", field=field)
    return paths


def no_document(collection: str, document_id: str) -> NotFound:
    return NotFound(f"no document {document_id!r} in collection {collection!r}", field="id")


class Place(Protocol):
    """Where a search is made."""

    @property
    def name(self) -> str: ...

    @property
    def collection(self) -> Collection: ...

    @property
    def embedder(self) -> Embedder | None: ...

    async def read(self, work: Callable[[], _T]) -> _T: ...


def check(command: messages.Search) -> Filter | None:
    """Return the filter of a search. Raises what is wrong with the command whatever the collection is."""
    without_user(command)
    checks.between(command.k, 1, checks.MAX_K, "k")
    if command.ef is not None:
        checks.between(command.ef, 1, MAX_EF, "ef")
    if command.min_score is not None and not math.isfinite(command.min_score):
        raise InvalidArgument(f"min_score is {command.min_score}, not a finite number", field="min_score")
    return Filter(command.filter) if command.filter else None


async def query(place: Place, command: messages.Search) -> Query:
    """Return the engine's query for a search command. Raises InvalidArgument, InvalidVector, InvalidFilter, NotFound."""
    where = check(command)
    return Query(
        await _vectors(place, command),
        command.k,
        where,
        command.exact,
        excluded=frozenset() if command.id is None else frozenset((command.id,)),
        include_vector="vector" in command.include,
        ef=command.ef,
        several=command.vectors is not None,
    )


def without_user(command: messages.Search | messages.Watch) -> None:
    """Raise InvalidArgument for what is about recommendations alone."""
    if command.diversity is not None:
        raise InvalidArgument("diversity can't be asked for without user_id", field="diversity")


async def _vectors(place: Place, command: messages.Search) -> Vector:
    """Return the vectors[n, d] to search for."""
    given = [name for name in ("vector", "vectors", "text", "id") if getattr(command, name) is not None]
    if len(given) != 1:
        raise InvalidArgument(
            f"search needs one of vector, vectors, text, id and user_id; it has {', '.join(given) or 'none'}",
            field="vector",
        )
    if command.vectors is not None:
        checks.between(len(command.vectors), 1, MAX_VECTORS, "the number of vectors")
        spec = place.collection.spec
        return np.stack([vector(spec, one, f"vectors[{i}]") for i, one in enumerate(command.vectors)])
    return (await _vector(place, command))[np.newaxis]


def vector(spec: Spec, raw: messages.RawVector, field: str = "vector") -> Vector:
    """Return a client's vector as a collection compares it: float32[d]. Raises InvalidVector."""
    parsed = vectors.parse(raw, field)
    vectors.check(parsed, spec.dimension, spec.metric, field)
    return parsed


async def _vector(place: Place, command: messages.Search) -> Vector:
    collection = place.collection
    if command.vector is not None:
        return vector(collection.spec, command.vector)
    if command.text is not None:
        return await _embed(place, command.text)
    assert command.id is not None, "one of the three is given"
    checks.document_id(command.id)
    found = await place.read(partial(collection.get, command.id, include_vector=True))
    if found is None or found[1] is None:
        raise no_document(place.name, command.id)
    return np.frombuffer(found[1], np.float32)


async def _embed(place: Place, text: str) -> Vector:
    if place.embedder is None:
        raise InvalidArgument(
            f"collection {place.name!r} has no embedding model here; search it by vector or id", field="text"
        )
    if not text.strip():
        raise InvalidArgument(f"text is {text!r}; it must have words", field="text")
    at_hand = await place.read(partial(_at_hand, place.collection, place.embedder, text))
    if at_hand is not None:
        return at_hand
    (embedded,) = await place.embedder.embed([text])
    if isinstance(embedded, HotindexError):
        raise embedded
    return embedded


def _at_hand(collection: Collection, embedder: Embedder, text: str) -> Vector | None:
    """Return the vector of a text without asking a service, if that can be. Blocks."""
    known = collection.embedded(text)
    return embedder.embed_here([text]).get(text) if known is None else np.frombuffer(known, np.float32)

"""From the engine's values to the messages that answer with them."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.engine.types import Answer, Document, Done, Hit
from gateway.protocol import messages
from gateway.protocol.codec import Codec
from gateway.protocol.messages import Include
from gateway.protocol.timestamps import iso


def ack(collection: str, done: Done) -> messages.Ack:
    results = tuple(messages.WriteResult(item.id, item.version, item.status) for item in done.results)
    return messages.Ack(collection=collection, index_version=done.index_version, results=results)


def document(
    collection: str, found: Document, vector: bytes | None, include: Sequence[Include], codec: Codec
) -> messages.DocumentMessage:
    return messages.DocumentMessage(
        collection=collection,
        id=found.id,
        version=found.version,
        updated_at=iso(found.updated_at),
        metadata=codec.metadata(found.metadata),
        content=found.content if "content" in include else None,
        vector=codec.vector(vector) if vector is not None else None,
    )


def results(collection: str, answer: Answer, include: Sequence[Include], codec: Codec) -> messages.Results:
    lists = tuple(tuple(_item(hit, include, codec) for hit in hits) for hits in answer.results)
    return messages.Results(
        collection=collection, index_version=answer.index_version, results=lists if answer.several else lists[0]
    )


def recommendations(collection: str, user_id: str, answer: Answer, at: int) -> messages.RecommendationUpdate:
    """Return what tells of recommendations as of `at`, in microseconds since the epoch."""
    (hits,) = answer.results
    return messages.RecommendationUpdate(
        collection=collection,
        user_id=user_id,
        recommendations=tuple(hit.document.id for hit in hits),
        scores=tuple(hit.score for hit in hits),
        timestamp=iso(at),
    )


def _item(hit: Hit, include: Sequence[Include], codec: Codec) -> messages.ResultItem:
    return messages.ResultItem(
        id=hit.document.id,
        score=hit.score,
        version=hit.document.version,
        metadata=codec.metadata(hit.document.metadata),
        content=hit.document.content if "content" in include else None,
        vector=codec.vector(hit.vector) if hit.vector is not None else None,
    )

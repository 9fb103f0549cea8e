"""Several changes of a collection, sent together when a block ends."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeAlias

from hotindex import wire
from hotindex.errors import HotindexError
from hotindex.types import Ack, Document, Metadata, VectorLike

MAX_OPERATIONS = 10_000

Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[Ack]]


class Gathering:
    """The operations of a transaction, in the order of the calls, as they were at the time of the call.

    They are applied in that order, all or none. A document may occur several times.
    """

    def __init__(self, collection: str, event_id: str | None, priority: int) -> None:
        self.collection = collection
        self.event_id = event_id or uuid.uuid4().hex
        """Under it the transaction is applied once, however often it is sent within the gateway's window."""
        self.ack: Ack | None = None
        """The gateway's answer, after the block; None where there was nothing to send."""
        self._priority = priority
        self._operations: list[dict[str, Any]] = []
        self._open = False
        self._overflow: HotindexError | None = None

    def __len__(self) -> int:
        return len(self._operations)

    def upsert(
        self,
        id: str,  # noqa: A002 - the contract's name
        *,
        vector: VectorLike | None = None,
        content: str | None = None,
        metadata: Metadata | None = None,
        if_version: int | None = None,
    ) -> None:
        """Write a document; fields left out keep what is stored."""
        self._add({"action": "upsert", **wire.document(Document(id, vector, content, metadata, if_version))})

    def patch(
        self,
        id: str,  # noqa: A002
        changes: Metadata,
        *,
        content: str | None = None,
        if_version: int | None = None,
    ) -> None:
        """Merge `changes` into a document's metadata; None removes a key."""
        self._add({"action": "patch", "id": id, "changes": changes, "content": content, "if_version": if_version})

    def delete(self, *ids: str) -> None:
        """Delete documents; those that aren't there are answered `missing`."""
        self._add(*({"action": "delete", "id": document_id} for document_id in ids))

    def _add(self, *operations: dict[str, Any]) -> None:
        if not self._open:
            raise HotindexError("closed", "a transaction takes operations inside its with block alone", retryable=False)
        if len(self._operations) + len(operations) > MAX_OPERATIONS:
            self._overflow = HotindexError(
                "too_large", f"a transaction has at most {MAX_OPERATIONS:,} operations", retryable=False
            )
            raise self._overflow
        self._operations += [wire.copied(operation) for operation in operations]

    def _enter(self) -> None:
        if self._open or self.ack is not None:
            raise HotindexError("closed", "a transaction is used once", retryable=False)
        self._open = True

    def _leave(self, error: BaseException | None) -> dict[str, Any] | None:
        """Return the command to send, if any. Raises where an operation did not fit, and the block went on without it."""
        self._open = False
        if error is not None:
            return None
        if self._overflow is not None:
            raise self._overflow
        if not self._operations:
            return None
        return {
            "action": "transaction",
            "collection": self.collection,
            "operations": self._operations,
            "event_id": self.event_id,
            "priority": self._priority or None,
        }


class Transaction(Gathering):
    """See `Client.transaction`."""

    def __init__(self, send: Send, collection: str, event_id: str | None, priority: int) -> None:
        super().__init__(collection, event_id, priority)
        self._send = send

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if command := self._leave(error):
            self.ack = await self._send(command)

"""From commands to writes: everything about a command that can be wrong without looking at what is stored is found here."""

from __future__ import annotations

from gateway.engine import vectors
from gateway.engine.types import Operation, Patch, Put, Remove, Spec, Write
from gateway.errors import InvalidArgument, NotFound
from gateway.protocol import checks, messages
from gateway.protocol.messages import JsonObject, RawVector

MAX_DOCUMENTS = 10_000


def write(command: messages.Write, size_bytes: int) -> Write:
    """Return what `command` asks for, checked but for what depends on the collection: see `check`."""
    operations = _operations(command)
    if command.event_id is not None:
        checks.document_id(command.event_id, "event_id")
    return Write(
        operations,
        atomic=isinstance(command, messages.Transaction) or (isinstance(command, messages.Upsert) and command.atomic),
        event_id=command.event_id,
        priority=command.priority,
        size_bytes=size_bytes,
        listed_as=_listed_as(command),
    )


def _listed_as(command: messages.Write) -> str | None:
    match command:
        case messages.Transaction():
            return "operations"
        case messages.Upsert(documents=list()):
            return "documents"
        case messages.Delete(ids=list()):
            return "ids"
        case _:
            return None


def field_of(write: Write, number: int, name: str) -> str:
    """Return the path at which a field of the operation `number` stands in its command."""
    return f"{write.listed_as}[{number}].{name}" if write.listed_as else name


def check(write: Write, spec: Spec) -> None:
    """Raise InvalidVector unless the vectors of `write` fit the collection."""
    for i, operation in enumerate(write.operations):
        if isinstance(operation, Put) and operation.vector is not None:
            vectors.check(operation.vector, spec.dimension, spec.metric, field_of(write, i, "vector"))


def first_puts(write: Write, collection: str) -> list[tuple[int, Put]]:
    """Return the upserts that make a document, with their numbers, in a collection that has none yet. Raises NotFound for
    a patch of what isn't there.
    """
    there: set[str] = set()
    first: list[tuple[int, Put]] = []
    for i, operation in enumerate(write.operations):
        if isinstance(operation, Remove):
            there.discard(operation.id)
        elif operation.id in there:
            continue
        elif isinstance(operation, Patch):
            raise NotFound(f"no document {operation.id!r} in collection {collection!r}", field=field_of(write, i, "id"))
        elif isinstance(operation, Put):
            there.add(operation.id)
            first.append((i, operation))
    return first


def _operations(command: messages.Write) -> tuple[Operation, ...]:
    match command:
        case messages.Upsert():
            return _upsert(command)
        case messages.Patch():
            return (_patch(command),)
        case messages.Delete():
            return _delete(command)
        case messages.Transaction():
            checks.between(len(command.operations), 1, MAX_DOCUMENTS, "the number of operations")
            return tuple(_operation(one, f"operations[{i}].") for i, one in enumerate(command.operations))
        case messages.ProductCreated():
            checks.document_id(command.product_id, "product_id")
            _check_fields(command.product_id, command.data, None, "data")
            return (Put(command.product_id, metadata=command.data, from_fields=True),)
        case messages.ProductUpdated():
            checks.document_id(command.product_id, "product_id")
            _check_fields(command.product_id, command.changes, None, "changes")
            return (Patch(command.product_id, command.changes),)
        case messages.ProductDeleted():
            checks.document_id(command.product_id, "product_id")
            return (Remove(command.product_id),)


def _upsert(command: messages.Upsert) -> tuple[Operation, ...]:
    if command.documents is None:
        if command.id is None:
            raise InvalidArgument("upsert has neither id nor documents", field="id")
        return (put(command.id, command.vector, command.content, command.metadata, command.if_version),)
    single = (command.id, command.vector, command.content, command.metadata, command.if_version)
    if any(value is not None for value in single):
        raise InvalidArgument("upsert has documents and fields of a single document; send one or the other", field="id")
    checks.between(len(command.documents), 1, MAX_DOCUMENTS, "the number of documents")
    return tuple(
        put(one.id, one.vector, one.content, one.metadata, one.if_version, f"documents[{i}].")
        for i, one in enumerate(command.documents)
    )


def put(
    document_id: str,
    vector: RawVector | None,
    content: str | None,
    metadata: JsonObject | None,
    if_version: int | None,
    at: str = "",
) -> Put:
    """Return one document's upsert, checked; `at` is where it stands in its command."""
    checks.document_id(document_id, f"{at}id")
    _check_fields(document_id, metadata or {}, content, f"{at}metadata")
    _check_version(if_version, f"{at}if_version")
    parsed = None if vector is None else vectors.parse(vector, f"{at}vector")
    return Put(document_id, parsed, content, metadata, if_version)


def _patch(one: messages.Patch | messages.PatchOperation, at: str = "") -> Patch:
    checks.document_id(one.id, f"{at}id")
    _check_fields(one.id, one.changes, one.content, f"{at}changes")
    _check_version(one.if_version, f"{at}if_version")
    return Patch(one.id, one.changes, one.content, one.if_version)


def _operation(one: messages.Operation, at: str) -> Operation:
    """Return one operation of a transaction, checked; `at` is where it stands in its command."""
    match one:
        case messages.PutOperation():
            return put(one.id, one.vector, one.content, one.metadata, one.if_version, at)
        case messages.PatchOperation():
            return _patch(one, at)
        case messages.DeleteOperation():
            checks.document_id(one.id, f"{at}id")
            return Remove(one.id)


def _delete(command: messages.Delete) -> tuple[Operation, ...]:
    if (command.id is None) == (command.ids is None):
        raise InvalidArgument("delete needs either id or ids", field="id")
    ids = [command.id] if command.id is not None else command.ids or []
    checks.between(len(ids), 1, MAX_DOCUMENTS, "the number of ids")
    for i, document_id in enumerate(ids):
        checks.document_id(document_id, "id" if command.ids is None else f"ids[{i}]")
    return tuple(Remove(document_id) for document_id in ids)


def _check_fields(document_id: str, metadata: JsonObject, content: str | None, field: str) -> None:
    checks.metadata(metadata, field)
    checks.document_size(metadata, content, document_id)


def _check_version(version: int | None, field: str) -> None:
    if version is not None:
        checks.between(version, 0, 2**63 - 1, field)

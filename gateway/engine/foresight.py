"""Which texts writes will need that wait for others on the same documents.

What a document will be doesn't depend on its vectors, so a chain of changes can be followed to its end before the first
of them has its vector: all their texts are embedded together, instead of one after the other. It only says what to ask
for ahead; what is applied is planned anew, against what is stored then.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.engine.merge import Deletion, Draft, NeedsVector, Stored, merge
from gateway.engine.states import change, following
from gateway.engine.types import Spec, Write
from gateway.errors import HotindexError


class Foresight:
    """Documents as they will be once the writes on them that wait are applied.

    `known` is what was foreseen before, by document id; `there` returns what is stored.
    """

    def __init__(self, spec: Spec, known: dict[str, Stored], there: Callable[[str], Stored | None]) -> None:
        self._spec = spec
        self._known = known
        self._there = there
        self.states: dict[str, Stored] = {}
        """What was foreseen here."""

    def begin(self, write: Write) -> tuple[str, ...]:
        """Return the texts a write needs that is the first on its documents."""
        for operation in write.operations:
            if (stored := self._there(operation.id)) is not None:
                self.states[operation.id] = stored
            else:
                self.states.pop(operation.id, None)
        return self._follow(write, self.states.get)

    def go_on(self, write: Write) -> tuple[str, ...]:
        """Return the texts a write will need, after those before it."""
        if self._spec.model is None:
            return ()
        return self._follow(write, self._ahead)

    def _ahead(self, document_id: str) -> Stored | None:
        return self.states.get(document_id) or self._known.get(document_id) or self._there(document_id)

    def _follow(self, write: Write, state: Callable[[str], Stored | None]) -> tuple[str, ...]:
        texts: dict[str, None] = {}
        for operation in write.operations:
            stored = state(operation.id)
            try:
                outcome = merge(operation, stored, self._spec, write.vectors)
            except HotindexError:
                continue  # told when its turn has come, if it is so then
            if isinstance(outcome, NeedsVector):
                texts[outcome.text] = None
                outcome = outcome.draft
            if isinstance(outcome, Draft | Deletion):
                document = following(operation, stored, outcome, 0, 0)
                vector = outcome.vector if isinstance(outcome, Draft) else None
                _, self.states[operation.id] = change(document, vector, stored)
        return tuple(texts)

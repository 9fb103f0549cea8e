"""Numbers for the documents that watches hold, so that what a watch holds is an array."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from gateway.engine.types import Document

NOBODY = -1
"""No document's number."""

_SPARE = 4096


class Documents:
    """The latest state of each document that is held, or was told of. Their numbers stay as long as they are."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._free: list[int] = []
        self._kept = 0
        self._by_number: list[Document | None] = []
        self.versions: npt.NDArray[np.int64] = np.zeros(_SPARE, np.int64)
        """By number."""

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> Document:
        document = self._by_number[number]
        assert document is not None, "what is held is kept"
        return document

    @property
    def capacity(self) -> int:
        """All numbers are below."""
        return len(self._by_number)

    def find(self, document_id: str) -> int | None:
        return self._numbers.get(document_id)

    def number(self, document: Document) -> int:
        """Return the number of a document, and note its state if that is newer than what is known."""
        number = self._numbers.get(document.id)
        if number is None:
            number = self._free.pop() if self._free else len(self._by_number)
            if number == len(self._by_number):
                self._by_number.append(None)
                if number == len(self.versions):
                    self.versions = np.concatenate([self.versions, np.zeros_like(self.versions)])
            self._numbers[document.id] = number
        elif document.index_version <= self[number].index_version:
            return number
        self._by_number[number] = document
        self.versions[number] = document.version
        return number

    def order(self, numbers: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]) -> list[int]:
        """Return the order of documents by score, descending, and id."""
        ids = [self[number].id for number in numbers.tolist()]
        values = scores.tolist()
        return sorted(range(len(ids)), key=lambda i: (-values[i], ids[i]))

    @property
    def wants_sweep(self) -> bool:
        """Whether so many have been added since the last sweep that another is worth its time."""
        return len(self._numbers) > 2 * self._kept + _SPARE

    def sweep(self, held: Iterable[npt.NDArray[np.int32]]) -> None:
        """Forget all documents but those whose numbers are in the arrays `held`."""
        keep = np.zeros(self.capacity + 1, np.bool_)
        for numbers in held:
            keep[numbers] = True
        for number in np.flatnonzero(~keep[: self.capacity]).tolist():
            document = self._by_number[number]
            if document is not None:
                del self._numbers[document.id]
                self._by_number[number] = None
                self._free.append(number)
        self._kept = len(self._numbers)

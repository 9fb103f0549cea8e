"""A watch: a search whose answer the gateway keeps up to date."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hotindex import wire
from hotindex.live import LiveList, Watches
from hotindex.types import Change, Match


def ranked(matches: Iterable[Match]) -> tuple[Match, ...]:
    return tuple(sorted(matches, key=lambda match: (-match.score, match.id)))


def applied(
    results: Iterable[Match], added: Iterable[Match], changed: Iterable[Match], removed: Iterable[str]
) -> tuple[Match, ...]:
    """Return `results` after a difference, best first."""
    kept = {match.id: match for match in results}
    for document_id in removed:
        kept.pop(document_id, None)
    kept |= {match.id: match for match in (*added, *changed)}
    return ranked(kept.values())


def difference(before: tuple[Match, ...], after: tuple[Match, ...], index_version: int) -> Change:
    old, new = ({match.id: match for match in matches} for matches in (before, after))
    return Change(
        index_version,
        added=tuple(match for match in after if match.id not in old),
        changed=tuple(match for match in after if match.id in old and match != old[match.id]),
        removed=tuple(match.id for match in before if match.id not in new),
        results=after,
    )


class Watch(LiveList[Match, Change]):
    """Iterate over it, in one task. Made by `Client.watch`; begins with the first iteration or `async with`.

    An `async with` ends it with its block. Without one the end of an `async for` does, `break` included. It ends too with
    `close`, and with an error, such as NotFound where the collection is dropped.

    The first Change is the first answer; each later one is the difference to the list handed out before. A consumer that
    is busy misses none of it: what comes meanwhile is made one difference, so that no more is held than two lists. A lost
    connection is no more than that: the gateway is asked again, and if its answer is another one, the difference comes.

    `results` is the present top k, ties by id.
    """

    def __init__(self, watches: Watches, command: dict[str, Any]) -> None:
        super().__init__(watches, command)
        self.index_version: int | None = None
        """What `results` is as of. None until the gateway has answered."""
        self.exact: bool | None = None
        """Whether the gateway compares with every document, rather than search the graph. None until it has answered."""

    @property
    def collection(self) -> str:
        collection: str = self.command["collection"]
        return collection

    def _answer(self, reply: dict[str, Any]) -> None:
        self.exact, self.index_version = reply["exact"], reply["index_version"]
        self.results = ranked(wire.matches(reply["results"]))

    def _update(self, update: dict[str, Any]) -> None:
        added, changed = wire.matches(update["added"]), wire.matches(update["changed"])
        self.results = applied(self.results, added, changed, update["removed"])
        self.index_version = update["index_version"]

    def _news(self, before: tuple[Match, ...]) -> Change:
        assert self.index_version is not None, "the gateway has answered"
        return difference(before, self.results, self.index_version)

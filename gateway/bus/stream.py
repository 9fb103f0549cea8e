"""A collection's latest batches, as Redis keeps them."""

from __future__ import annotations

import structlog

from gateway.bus.batches import Header, decode_header
from gateway.bus.link import Link

log = structlog.get_logger(__name__)

_FIRST_PAGE, _LARGEST_PAGE = 16, 512
_PAGE_BYTES = 2 << 20
"""Batches read at a time, and about how many bytes of them."""


class Stream:
    """Call on the event loop, one call at a time."""

    def __init__(self, link: Link, key: str) -> None:
        self._link = link
        self._key = key
        self._page = _FIRST_PAGE

    async def after(self, index_version: int) -> tuple[list[tuple[Header, memoryview]], bool]:
        """Return a page of what comes after `index_version`, and whether there may be more. It ends before an entry that is
        no batch. Raises LinkLost, LinkRefused.
        """
        page = self._page
        found = await self._link.command("XRANGE", self._key, f"({index_version}-0", "+", "COUNT", page)
        size_bytes = sum(len(message) for _, (_, message) in found)
        self._page = max(1, page // 4) if size_bytes > _PAGE_BYTES else min(_LARGEST_PAGE, 2 * page)
        entries: list[tuple[Header, memoryview]] = []
        for entry_id, (_, message) in found:
            try:
                entries.append(decode_header(message))
            except ValueError as error:
                log.warning("no_batch", stream=self._key, entry=entry_id.decode(), reason=str(error))
                return entries, False
        return entries, len(found) == page

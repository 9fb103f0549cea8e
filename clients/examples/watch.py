"""Watch a search: what is nearest to a text, told anew whenever that changes, until Ctrl-C.

    python watch.py [URL [COLLECTION [TEXT]]]

The collection has to be there: the quickstart makes "films".
"""

import asyncio
import contextlib
import sys

from hotindex import Client


async def main(url: str, collection: str, text: str) -> None:
    async with Client(url) as client:
        async for change in client.watch(collection, text=text, k=3):
            print(f"at index_version {change.index_version}, gone: {list(change.removed)}")
            for match in change.results:
                mark = "new" if match in change.added else "changed" if match in change.changed else ""
                print(f"  {match.score:.3f} {match.id} {match.metadata} {mark}".rstrip(), flush=True)


arguments = [*sys.argv[1:], *("ws://127.0.0.1:8765", "films", "a storm at sea")[len(sys.argv) - 1 :]]
with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(*arguments))

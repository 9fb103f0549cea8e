"""Keep a local copy of a collection, and search it here: it goes on through restarts of the gateway and of this program.

    python replica.py [URL [COLLECTION [FILE]]]

The collection has to be there: the quickstart makes "films". Needs numpy: pip install "hotindex[replica]".
"""

import asyncio
import sys
from pathlib import Path

from hotindex import Replica


async def main(url: str, collection: str, path: Path) -> None:
    async with Replica(collection, url, path=path) as replica:
        print(f"{len(replica)} documents from {path}" if len(replica) else "nothing yet")
        shown = None
        while True:
            state = (replica.in_sync, len(replica), replica.index_version)
            if state != shown:
                shown = state
                synced = "in sync" if replica.in_sync else "not in sync"
                print(f"{synced}: {len(replica)} documents at index_version {replica.index_version}", flush=True)
                newest = next(reversed([*replica]), None)
                if newest is not None and newest.vector is not None:
                    print(
                        "  nearest to the newest:", [hit.id for hit in replica.search(newest.vector, k=3)], flush=True
                    )
            await asyncio.sleep(0.1)


url, collection, path = [*sys.argv[1:], *("ws://127.0.0.1:8765", "films", "films.replica")[len(sys.argv) - 1 :]]
asyncio.run(main(url, collection, Path(path)))

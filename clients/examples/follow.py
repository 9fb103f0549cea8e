"""Follow a collection, and go on after a restart of this program from where it was: the position is kept in a file.

    python follow.py [URL [COLLECTION [FILE]]]

The collection has to be there: the quickstart makes "films".
"""

import asyncio
import json
import sys
from pathlib import Path

from hotindex import Client, Reset, Update


async def main(url: str, collection: str, state: Path) -> None:
    # A position belongs to one life of the collection, which its epoch names: in another one, everything comes anew.
    position = json.loads(state.read_text()) if state.exists() else {"since": 0, "epoch": None}
    async with Client(url) as client, client.subscribe(collection, **position) as updates:
        async for update in updates:
            if isinstance(update, Reset):
                print("start over: everything follows")
                continue
            if not isinstance(update, Update):
                continue
            print(update.index_version, update.event_type, update.document_id, update.metadata)
            written = state.with_suffix(".new")
            written.write_text(json.dumps({"since": update.index_version, "epoch": updates.epoch}))
            written.replace(state)


url, collection, state = [*sys.argv[1:], *("ws://127.0.0.1:8765", "films", "follow.json")[len(sys.argv) - 1 :]]
asyncio.run(main(url, collection, Path(state)))

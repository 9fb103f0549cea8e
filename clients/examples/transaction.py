"""An order and the stock it is taken from, changed together or not at all.

python transaction.py [URL]
"""

import asyncio
import sys
import time

from hotindex import Client, Conflict, Document


async def main(url: str) -> None:
    async with Client(url) as client:
        lamp, desk = (Document(name, content=f"A {name}", metadata={"stock": 1}) for name in ("lamp", "desk"))
        await client.upsert("orders", [lamp, desk])
        seen = await client.get("orders", "lamp")

        async with client.subscribe("orders") as updates:
            async with client.transaction("orders") as tx:
                tx.patch("lamp", {"stock": 0}, if_version=seen.version)
                tx.upsert("order 1", content="A lamp, to be sent to Naples", metadata={"at": time.time()})
            assert tx.ack is not None
            print("applied:", [(result.id, result.status) for result in tx.ack.results])
            print("told:   ", [(await anext(updates)).event_type for _ in range(3)])

        try:
            async with client.transaction("orders") as tx:
                tx.upsert("order 2", content="A desk and a lamp")
                tx.patch("desk", {"stock": 0})
                tx.patch("lamp", {"stock": 0}, if_version=seen.version)
        except Conflict as conflict:
            print("refused:", conflict.message)
        print("desk:   ", (await client.get("orders", "desk")).metadata)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765"))

"""Write, search, and hear of a change. Needs a gateway: `make run`, or give its address as argument."""

import asyncio
import sys
import time

from hotindex import Client, Document


async def main(url: str) -> None:
    async with Client(url) as client:
        films = {
            "1": "A fisherman fights a giant marlin alone at sea",
            "2": "A crew travels through a wormhole to save mankind",
            "3": "Two chefs open a restaurant in Naples",
        }
        await client.upsert("films", [Document(key, content=text) for key, text in films.items()])
        results = await client.search("films", text="astronauts in deep space", k=1)
        print("found:", films[results.hits[0].id])

        async with client.subscribe("films") as updates:
            await client.patch("films", "2", {"seen_at": time.time()})
            update = await anext(updates)
            print("told: ", update.event_type, update.document_id, update.metadata)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765"))

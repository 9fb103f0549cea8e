"""Send what has changed: a price leaves the vector alone, a name is embedded anew.

python delta.py [URL]
"""

import asyncio
import sys

from hotindex import Client, Conflict


async def main(url: str) -> None:
    async with Client(url) as client:
        # Neither vector nor content: name, description, category and tags are what is embedded.
        await client.upsert("catalog", id="p1", metadata={"name": "Trail shoe", "category": "Shoes", "price": 90})
        first = await client.get("catalog", "p1", include=["vector"])

        await client.patch("catalog", "p1", {"price": 80, "sale": True})
        cheaper = await client.get("catalog", "p1", include=["vector"])
        print("price changed:", cheaper.metadata["price"], "| the vector too:", cheaper.vector != first.vector)

        await client.patch("catalog", "p1", {"name": "Mountain boot", "sale": None}, if_version=cheaper.version)
        renamed = await client.get("catalog", "p1", include=["vector"])
        print("name changed:", renamed.metadata, "| the vector too:", renamed.vector != cheaper.vector)

        try:
            await client.patch("catalog", "p1", {"price": 70}, if_version=cheaper.version)
        except Conflict as conflict:
            print(f"refused: written for version {cheaper.version}, there is {conflict.version} by now")
            await client.patch("catalog", "p1", {"price": 70}, if_version=conflict.version)
        print("in the end:", (await client.get("catalog", "p1")).metadata)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765"))

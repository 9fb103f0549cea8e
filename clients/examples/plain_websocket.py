"""A subscriber made of nothing but `websockets` and `json`, following docs/protocol.md.

python plain_websocket.py [URL [COLLECTION]]
"""

import asyncio
import json
import sys

import websockets


async def main(url: str, collection: str) -> None:
    async with websockets.connect(url) as socket:
        print(json.loads(await socket.recv()))
        await socket.send(json.dumps({"action": "subscribe", "collection": collection, "since": 0}))
        async for message in socket:
            print(json.loads(message))


asyncio.run(main(*sys.argv[1:3], *("ws://127.0.0.1:8765", "films")[len(sys.argv) - 1 :]))

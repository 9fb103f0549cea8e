"""What is recommended to a user, told anew as the user does something, until Ctrl-C. Needs a gateway: `make run`.

python recommendations.py [URL]
"""

import asyncio
import contextlib
import sys
import uuid

from hotindex import Client, Document

FILMS = {
    "marlin": "A fisherman fights a giant marlin alone at sea",
    "storm": "A storm at sea surprises the crew of a fishing boat",
    "island": "A sailor is stranded on an island in the ocean",
    "wormhole": "A crew travels through a wormhole to save mankind",
    "mars": "An astronaut is left behind on Mars",
    "station": "Engineers repair a space station in orbit",
    "naples": "Two chefs open a restaurant in Naples",
}


DEEDS = [("like", "mars"), ("purchase", "wormhole"), ("hide", "station"), ("like", "storm")]


async def visit(client: Client, user: str) -> None:
    for action, film in DEEDS:
        await asyncio.sleep(1)
        print(action, film, flush=True)
        await client.interact(user, action, film, collection="screen")


async def main(url: str) -> None:
    user = f"visitor {uuid.uuid4()}"
    async with Client(url) as client, asyncio.TaskGroup() as tasks:
        await client.upsert("screen", [Document(key, content=text) for key, text in FILMS.items()])
        tasks.create_task(visit(client, user))
        async for update in client.recommendations(user, collection="screen", k=3):
            print("  recommended:", [film.id for film in update.results], flush=True)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765"))

"""Search by the vectors of a service: Ollama, OpenAI, or any other that speaks OpenAI's API.

    python provider.py [MODEL [URL [HTTP_URL]]]

Needs a gateway with the model in its settings: `hotindex serve --config provider.toml`.
"""

import asyncio
import json
import sys
import urllib.request

from hotindex import Client, Document, HotindexError


def create(http: str, collection: str, model: str) -> None:
    body = json.dumps({"model": model}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{http}/v1/collections/{collection}", body, headers, method="PUT")
    urllib.request.urlopen(request).close()


async def main(model: str, url: str, http: str) -> None:
    dishes = {
        "1": "Spaghetti with clams, garlic and white wine",
        "2": "Lentil soup with cumin and lemon",
        "3": "Chocolate cake with a liquid centre",
    }
    create(http, "dishes", model)
    async with Client(url) as client:
        try:
            await client.upsert("dishes", [Document(key, content=text) for key, text in dishes.items()])
            results = await client.search("dishes", text="something sweet", k=2)
        except HotindexError as error:
            sys.exit(str(error))
    for hit in results.hits:
        print(f"{hit.score:.3f}  {dishes[hit.id]}")


model, url, http = [*sys.argv[1:], *("nomic", "ws://127.0.0.1:8765", "http://127.0.0.1:8080")[len(sys.argv) - 1 :]]
asyncio.run(main(model, url, http))

"""The same without asyncio."""

import sys

import hotindex

with hotindex.sync.Client(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765") as client:
    client.upsert("shoes", id="s1", content="A light shoe for muddy trails", metadata={"price": 90})
    client.upsert("shoes", id="s2", content="An elegant leather shoe", metadata={"price": 150})
    for hit in client.search("shoes", text="running in the forest", filter={"price": {"$lt": 100}}).hits:
        print(f"{hit.score:.3f}", hit.id, hit.metadata)
    for update in client.subscribe("shoes", since=0):
        print(update)
        if isinstance(update, hotindex.Update) and update.document_id == "s2":
            break

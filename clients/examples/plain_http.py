"""A producer made of nothing but an HTTP library: upsert, read, delete under /v1."""

import json
import sys
import urllib.error
import urllib.request

BASE = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"


def call(method: str, path: str, body: object = None) -> object:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


vector = {"id": "item-1", "vector": [0.1, 0.9, 0.3], "metadata": {"price": 12.5}}
print(call("POST", "/v1/upsert", {"collection": "items", "vectors": [vector]}))
print(call("GET", "/v1/documents/item-1?collection=items"))
print(call("POST", "/v1/collections/items/search", {"vector": [0.1, 0.8, 0.4], "k": 1}))
print(call("POST", "/v1/delete", {"collection": "items", "ids": ["item-1"]}))
print(call("GET", "/v1/documents/item-1?collection=items"))

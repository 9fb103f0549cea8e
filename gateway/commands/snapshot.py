"""`hotindex snapshot`."""

from __future__ import annotations

import urllib.parse

from gateway.commands.http import ask


def run(http_url: str, collection: str) -> None:
    written = ask(http_url, f"/v1/collections/{urllib.parse.quote(collection, safe='')}/snapshot", "POST")
    print(f"snapshot of {written['collection']} at index_version {written['index_version']} written")

"""`hotindex snapshot`."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request

from hotindex.errors import ConnectionLost, HotindexError, from_message


def run(http_url: str, collection: str) -> None:
    address = f"{http_url}/v1/collections/{urllib.parse.quote(collection, safe='')}/snapshot"
    request = urllib.request.Request(address, method="POST")  # noqa: S310 - the user's own address
    try:
        with urllib.request.urlopen(request) as response:  # noqa: S310
            written = json.load(response)
    except urllib.error.HTTPError as error:
        raise _told(error, http_url) from None
    except json.JSONDecodeError:
        raise ConnectionLost(f"{http_url} doesn't answer as a gateway's HTTP address does", retryable=False) from None
    except OSError as error:
        raise ConnectionLost(f"can't reach {http_url}: {error}") from None
    print(f"snapshot of {written['collection']} at index_version {written['index_version']} written")


def _told(error: urllib.error.HTTPError, http_url: str) -> HotindexError:
    try:
        return from_message(json.load(error))
    except ValueError:
        return ConnectionLost(f"{http_url} doesn't answer as a gateway's HTTP address does", retryable=False)

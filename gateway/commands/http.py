"""What subcommands ask a gateway over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from hotindex.errors import ConnectionLost, HotindexError, from_message


def ask(http_url: str, path: str, method: str = "GET") -> Any:
    """Return the gateway's answer. Raises a HotindexError."""
    request = urllib.request.Request(f"{http_url}{path}", method=method)  # noqa: S310 - the user's own address
    try:
        with urllib.request.urlopen(request) as response:  # noqa: S310
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise _told(error, http_url) from None
    except json.JSONDecodeError:
        raise _no_gateway(http_url) from None
    except OSError as error:
        raise ConnectionLost(f"can't reach {http_url}: {error}") from None


def _told(error: urllib.error.HTTPError, http_url: str) -> HotindexError:
    try:
        return from_message(json.load(error))
    except ValueError:
        return _no_gateway(http_url)


def _no_gateway(http_url: str) -> ConnectionLost:
    return ConnectionLost(f"{http_url} doesn't answer as a gateway's HTTP address does", retryable=False)

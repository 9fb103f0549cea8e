"""`hotindex nodes`."""

from __future__ import annotations

import sys
from typing import Any

from rich.table import Table

from gateway.commands.common import line, show
from gateway.commands.http import ask


def run(http_url: str, *, as_json: bool) -> None:
    nodes = ask(http_url, "/v1/nodes")["nodes"]
    if not nodes:
        print(f"the node at {http_url} shares nothing: it runs without redis_url", file=sys.stderr)
    elif as_json:
        for node in nodes:
            print(line(node))
    else:
        show(table(nodes))


def table(nodes: list[dict[str, Any]]) -> Table:
    shown = Table(box=None, pad_edge=False)
    for heading in ("node", "heard of", "collection", "index_version", "lag", "http", "ws"):
        shown.add_column(heading, no_wrap=True)
    for node in nodes:
        heard = f"{node['heard_s']:.1f} s ago"
        addresses = (node["http"], node["ws"])
        versions = sorted(node["index_versions"].items()) or [("", "")]
        for i, (collection, index_version) in enumerate(versions):
            lag = node["lag"].get(collection, "")
            first = (node["name"], heard) if i == 0 else ("", "")
            shown.add_row(*first, collection, str(index_version), str(lag), *(addresses if i == 0 else ("", "")))
    return shown

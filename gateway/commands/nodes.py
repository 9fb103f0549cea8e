"""`hotindex nodes`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.commands.common import line
from gateway.commands.http import ask


def run(http_url: str, *, as_json: bool) -> None:
    nodes = ask(http_url, "/v1/nodes")["nodes"]
    if as_json:
        for node in nodes:
            print(line(node))
    else:
        console = Console()
        # A pipe has no width to fit into.
        console.print(table(nodes), soft_wrap=not console.is_terminal)


def table(nodes: list[dict[str, Any]]) -> Table:
    shown = Table("node", "heard of", "collection", "index_version", "lag", "http", "ws")
    for node in nodes:
        heard = f"{node['heard_s']:.1f} s ago"
        addresses = (node["http"], node["ws"])
        versions = sorted(node["index_versions"].items()) or [("", "")]
        for i, (collection, index_version) in enumerate(versions):
            lag = node["lag"].get(collection, "")
            first = (node["name"], heard) if i == 0 else ("", "")
            shown.add_row(*first, collection, str(index_version), str(lag), *(addresses if i == 0 else ("", "")))
    return shown

"""`hotindex stats`."""

from __future__ import annotations

from typing import Any

import typer

from gateway.commands import http
from gateway.commands.common import line

_HEADS = 14
"""Columns of what a line is about."""


def run(http_url: str, *, as_json: bool) -> None:
    stats = http.ask(http_url, "/v1/stats")
    if as_json:
        typer.echo(line(stats))
        return
    typer.echo(f"node {stats['node']}, since its start")
    for model in stats["models"]:
        _show_model(model)
    for collection in sorted(stats["collections"], key=lambda one: str(one["name"])):
        _show_collection(collection)
    for collection in sorted(stats["relayed"], key=lambda one: str(one["name"])):
        typer.echo(f"\ncollection {collection['name']}, hosted by other nodes")
        _fact("watches", f"{collection['relayed_watches']:,}")


def _show_model(model: dict[str, Any]) -> None:
    state = "" if model["available"] else "; not asked at present, for it failed too often"
    typer.echo(f"\nmodel {model['name']} ({model['identity']}){state}")
    _fact("calls", f"{model['calls']:,}, {model['failed_calls']:,} of them failed")
    _fact("embedded", _texts(model, "", "cost"))
    _fact("saved", _texts(model, "saved_", "saved_cost"))
    _fact("waiting", f"{model['waiting']:,} texts")


def _texts(model: dict[str, Any], prefix: str, cost: str) -> str:
    texts = f"{model[prefix + 'texts']:,} texts, {model[prefix + 'tokens']:,} tokens"
    return f"{texts}, cost {model[cost]:,.6g}" if model["price"] else f"{texts}, no price set"


def _show_collection(collection: dict[str, Any]) -> None:
    typer.echo(f"\ncollection {collection['name']}")
    _fact("documents", f"{collection['documents']:,}, at index_version {collection['index_version']:,}")
    _fact("texts saved", f"{collection['unchanged_texts']:,} unchanged, {collection['found_texts']:,} found")
    _fact("queued", f"{collection['queued_documents']:,} documents")
    _fact("subscribers", f"{collection['subscribers']:,}")


def _fact(head: str, text: str) -> None:
    typer.echo(f"  {head:<{_HEADS}}{text}")

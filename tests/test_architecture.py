"""What import contracts alone can't say: each third-party system has one importing module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

HOMES = {
    "hnswlib": {"gateway/engine/graph.py"},
    "sqlite3": {"gateway/engine/database.py"},
    "websockets": {"gateway/server/connection.py", "clients/hotindex/connection.py"},
    "aiohttp": {
        "gateway/server/http.py",
        "gateway/server/requests.py",
        "gateway/server/open_streams.py",
        "gateway/server/peering.py",
        "gateway/node/peers.py",
        "gateway/embed/transport.py",
    },
    "tenacity": {"gateway/embed/service.py"},
    "msgpack": {"clients/hotindex/wire.py"},
    "model2vec": {"gateway/embed/local.py"},
    "prometheus_client": {"gateway/metrics.py"},
    "pydantic": {"gateway/settings.py"},
    "pydantic_settings": {"gateway/settings.py"},
    "uvloop": {"gateway/app.py"},
    "redis": {"gateway/bus/wire.py"},
    "fcntl": {"gateway/node/datadir.py"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("system", HOMES)
def test_each_system_has_one_importing_module(system: str) -> None:
    files = [*(ROOT / "gateway").rglob("*.py"), *(ROOT / "clients/hotindex").rglob("*.py")]
    assert {str(path.relative_to(ROOT)) for path in files if system in imported(path)} == HOMES[system]


def test_settings_are_read_at_the_composition_root_alone() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "gateway").rglob("*.py")
        if "from gateway.settings import" in (text := path.read_text()) or "from gateway import settings" in text
    }
    assert readers == {"gateway/app.py", "gateway/cli.py"}

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Nodes
from tests.conftest import StartGateway
from tests.redis_servers import RedisServer


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis that may be harmed."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def nodes(start_gateway: StartGateway, shared_redis: RedisServer, tmp_path: Path) -> Nodes:
    shared_redis.flushall()
    return Nodes(start_gateway, shared_redis, tmp_path)

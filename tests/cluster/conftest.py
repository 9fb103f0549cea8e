from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Fleet
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
def fleet(start_gateway: StartGateway, shared_redis: RedisServer, tmp_path: Path) -> Fleet:
    shared_redis.flushall()
    return Fleet(start_gateway, shared_redis, tmp_path)

"""The permissions that the documentation says a node needs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from tests.cluster.nodes import Nodes, until
from tests.conftest import StartGateway
from tests.redis_servers import RedisServer

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


async def test_the_documented_permissions_are_enough(start_gateway: StartGateway, tmp_path: Path) -> None:
    line = re.search(r"^user (hotindex on .*)$", DOCS.read_text(), re.MULTILINE)
    assert line is not None
    with RedisServer() as redis:
        redis.cli("ACL", "SETUSER", *line[1].split())
        nodes = Nodes(start_gateway, redis, tmp_path)
        url = redis.url.replace("redis://", "redis://hotindex:secret@")
        async with (
            nodes.node("a", redis_url=url, stream_changes=3) as (a, at_a),
            nodes.node("b", redis_url=url) as (_, at_b),
        ):
            for i in range(10):
                ack = await at_a.reply(action="upsert", collection="m", id=f"d{i}", vector=[1, i])
                assert ack["type"] == "ack", ack
            await until(at_b, "document", action="get", collection="m", id="d9")
            redis.flushall()
            await until(at_b, "ack", action="patch", collection="m", id="d9", changes={"x": 1})
            await until(at_a, "ack", action="delete", collection="m", id="d9")
            await asyncio.to_thread(redis.client_kill_pubsub)
            await until(at_b, "ack", action="patch", collection="m", id="d8", changes={"x": 1})
            await a.node.drop("m")
        denied = redis.cli("ACL", "LOG")
        assert "reason" not in denied, denied

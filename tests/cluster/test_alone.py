"""What one node alone had when Redis forgot: it isn't lost, and who saw it starts over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hotindex import Unavailable

from tests.cluster.fleet import COLLECTION, Fleet, eventually, fleet
from tests.conftest import json_socket
from tests.redis_servers import RedisServer

ALONE = 100


@asynccontextmanager
async def forgotten(path: Path, redis: RedisServer) -> AsyncIterator[tuple[Fleet, str, int]]:
    """Run three nodes, of which the second is gone with writes that only it has, and the others went on without it.

    Yields the epoch and the position that it has told.
    """
    async with fleet(path, redis) as nodes:
        await nodes.make()
        one, alone, other = nodes.members
        epoch = (await alone.get(f"/v1/collections/{COLLECTION}"))["epoch"]
        proxies = [member.proxy for member in (one, other) if member.proxy is not None]
        for proxy in proxies:
            proxy.cut()
        for i in range(ALONE):
            told = (await alone.client.upsert(COLLECTION, id=f"alone{i}", vector=[1, 1, 1])).index_version
        alone.kill()
        redis.flushall()
        for proxy in proxies:
            await proxy.resume()

        async def written() -> bool:
            try:
                await one.client.upsert(COLLECTION, id="after", vector=[1, 1, 1])
            except Unavailable:
                return False
            return True

        await eventually(written, "the others go on")
        yield nodes, epoch, told


async def test_it_is_written_again_also_after_a_kill_meanwhile(tmp_path: Path, redis: RedisServer) -> None:
    async with forgotten(tmp_path, redis) as (nodes, _, _):
        one, alone, _ = nodes.members
        await alone.start()

        async def copied() -> bool:
            return bool(alone.logged("copied_anew"))

        await eventually(copied, "it copies what the others have")
        alone.kill()
        await alone.start()

        async def everywhere() -> bool:
            return len(await one.documents()) >= ALONE + 1

        await eventually(everywhere, "what it had is written again")
        await nodes.level()
        ids = await one.documents()
        assert {f"alone{i}" for i in range(ALONE)} <= set(ids)


async def test_who_saw_it_starts_over_at_another_node(tmp_path: Path, redis: RedisServer) -> None:
    async with forgotten(tmp_path, redis) as (nodes, epoch, told), json_socket(nodes.members[0].ws) as socket:
        for since, recovered in ((told, False), (1, True)):
            reply = await socket.reply(action="subscribe", collection=COLLECTION, since=since, epoch=epoch)
            assert reply["recovered"] is recovered
            assert reply["epoch"] != epoch
        new = reply["epoch"]
        ahead = await socket.reply(action="upsert", collection=COLLECTION, id="later", vector=[1, 1, 1])
        reply = await socket.reply(action="subscribe", collection=COLLECTION, since=ahead["index_version"], epoch=new)
        assert reply["recovered"] is True

"""Faults on gateways that share a Redis, all of them processes: afterwards all nodes and subscribers hold the same, and
everything that was acknowledged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest
from hotindex import Document, NotFound, Unavailable

from gateway.bus.agreement import Keys
from tests.cluster.faults import forget_latest
from tests.cluster.fleet import COLLECTION, SETTLE_S, WRITE_WAIT_S, Fleet, Member, eventually, fleet
from tests.cluster.support import Facts, Writer, audience, check, fits, load
from tests.proxy import Proxy
from tests.redis_servers import Fsync, RedisCluster, RedisServer

WATCHDOG_S = 8.0
"""Three heartbeats without a message of its own, and some for a busy machine."""

ENOUGH = 60


class Scene:
    """A fleet with an audience, and writers to let loose on it."""

    def __init__(self, nodes: Fleet, writers: Sequence[Writer], facts: Facts) -> None:
        self.nodes = nodes
        self.members = nodes.members
        self.facts = facts
        self._writers = writers

    def load(self) -> AbstractAsyncContextManager[None]:
        return load(self._writers)

    async def more(self, count: int = ENOUGH) -> None:
        """Wait until so many more writes are acknowledged."""
        enough = self.facts.acknowledged + count

        async def acknowledged() -> bool:
            return self.facts.acknowledged >= enough

        await eventually(acknowledged, f"{count} more writes are acknowledged")


@asynccontextmanager
async def scene(
    path: Path, redis: RedisServer | RedisCluster, count: int = 3, flags: Sequence[str] = ()
) -> AsyncIterator[Scene]:
    """Run nodes; in the end all that was acknowledged is everywhere, and nobody was made to start over."""
    async with fleet(path, redis, count, flags) as nodes:
        await nodes.make()
        await nodes.members[0].client.upsert(COLLECTION, id="shared", **fits(0))
        async with audience(nodes) as subscribers:
            facts = Facts()
            yield Scene(nodes, [Writer(f"w{i}", nodes.members, facts, Random(i)) for i in range(4)], facts)
            await check(nodes, facts, subscribers)
            assert subscribers.resets == 0


def proxy_of(member: Member) -> Proxy:
    assert member.proxy is not None
    return member.proxy


async def _write(member: Member, numbers: Mapping[str, int]) -> None:
    """Write documents one by one, in order."""
    for document_id, number in numbers.items():
        await member.client.upsert(COLLECTION, id=document_id, **fits(number))


async def test_kill_9_of_a_node_under_load(tmp_path: Path, redis: RedisServer) -> None:
    async with scene(tmp_path, redis) as at, at.load():
        await at.more()
        at.members[1].kill()
        await at.more()
        await at.members[1].start()
        await at.more()


async def test_kill_9_of_a_redis_that_keeps_nothing(tmp_path: Path, redis: RedisServer) -> None:
    async with scene(tmp_path, redis) as at, at.load():
        await at.more()
        await asyncio.to_thread(redis.restart)
        await at.more()


@pytest.mark.parametrize(("appendfsync", "bytes_lost"), [("everysec", 0), ("always", 20_000)])
async def test_kill_9_of_a_redis_that_comes_back_with_what_it_kept_or_an_older_state(
    tmp_path: Path, appendfsync: Fsync, bytes_lost: int
) -> None:
    with RedisServer(appendfsync=appendfsync) as redis:
        async with scene(tmp_path, redis) as at, at.load():
            await at.more()
            await asyncio.to_thread(redis.kill)
            assert forget_latest(redis, bytes_lost) == bytes_lost
            await asyncio.to_thread(redis.start)
            await at.more()


async def test_a_node_behind_reads_what_a_redis_kept_from_before_its_restart(tmp_path: Path) -> None:
    """Found by the soak, seed 2: messages of the term before were passed over, and the node read them again for ever."""
    with RedisServer(appendfsync="always") as redis:
        async with scene(tmp_path, redis, count=2) as at:
            a, b = at.members
            b.kill()
            await _write(a, {f"missed{i}": i for i in range(20)})
            await asyncio.to_thread(redis.restart)
            await b.start()
            await at.nodes.level(within_s=10)
            assert not b.logged("caught_up"), "the stream has it"


async def test_flushall_under_load(tmp_path: Path, redis: RedisServer) -> None:
    async with scene(tmp_path, redis) as at, at.load():
        for _ in range(2):
            await at.more()
            await asyncio.to_thread(redis.flushall)
        await at.more()


async def test_subscriptions_that_are_killed_come_back(tmp_path: Path, redis: RedisServer) -> None:
    async with scene(tmp_path, redis) as at, at.load():
        for _ in range(3):
            await at.more()
            assert await asyncio.to_thread(redis.client_kill_pubsub)
        await at.more()


async def test_a_subscription_that_goes_silent_is_noticed(tmp_path: Path, redis: RedisServer) -> None:
    """The connection stays open, and commands are answered: only that nothing comes tells of it."""
    async with scene(tmp_path, redis, count=2) as at:
        silent = at.members[1]
        async with at.load():
            await at.more()
            assert proxy_of(silent).mute_subscribers()
            began = time.monotonic()

            async def noticed() -> bool:
                return bool(silent.logged("subscriptions_silent"))

            await eventually(noticed, "the watchdog notices", WATCHDOG_S)
            assert time.monotonic() - began < WATCHDOG_S
            await at.more()


async def test_a_node_cut_off_reads_on_and_refuses_writes_in_time(tmp_path: Path, redis: RedisServer) -> None:
    async with scene(tmp_path, redis) as at:
        away, other = at.members[:2]
        await other.client.upsert(COLLECTION, id="x", **fits(1))
        await at.nodes.level()
        proxy_of(away).cut()
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(Unavailable) as refused:
                await away.client.upsert(COLLECTION, id="y", **fits(2))
            assert (refused.value.code, refused.value.retryable) == ("storage_unavailable", True)
            assert time.monotonic() - began < WRITE_WAIT_S + 1
        assert (await away.client.get(COLLECTION, "x")).metadata == {"n": 1}
        assert (await away.client.search(COLLECTION, vector=fits(1)["vector"], k=1)).hits[0].id == "x"
        assert await away.ready(), "it says why it is not"
        await other.client.upsert(COLLECTION, id="x", **fits(3))
        assert (await away.client.get(COLLECTION, "x")).metadata == {"n": 1}
        await proxy_of(away).resume()
        async with at.load():
            await at.more()
        assert (await away.client.get(COLLECTION, "x")).metadata == {"n": 3}


async def test_messages_that_come_late(tmp_path: Path, redis: RedisServer) -> None:
    async with scene(tmp_path, redis) as at:
        proxy_of(at.members[1]).delay(to_client_s=0.1)
        proxy_of(at.members[2]).delay(to_server_s=0.03, to_client_s=0.03)
        async with at.load():
            await at.more(20)
            await asyncio.to_thread(redis.flushall)
            await at.more(20)
        for member in at.members:
            await proxy_of(member).resume()


async def test_a_node_away_for_longer_than_the_stream_copies_from_another(tmp_path: Path, redis: RedisServer) -> None:
    async with scene(tmp_path, redis, count=2, flags=("--stream-changes", "50")) as at:
        a, b = at.members
        b.kill()
        for i in range(0, 500, 10):
            await a.client.upsert(COLLECTION, [Document(f"d{n % 200}", **fits(n)) for n in range(i, i + 10)])
        await b.start(("--stream-changes", "50"))
        await at.nodes.level()
        assert b.logged("caught_up")


async def test_two_nodes_that_write_to_one_document_lose_nothing(tmp_path: Path, redis: RedisServer) -> None:
    async with scene(tmp_path, redis, count=2) as at:

        async def add_keys(member: Member) -> None:
            for i in range(100):
                await member.client.patch(COLLECTION, "shared", {f"{member.name}{i}": i})

        await asyncio.gather(*(add_keys(member) for member in at.members))
        expected = {"n": 0} | {f"{member.name}{i}": i for member in at.members for i in range(100)}
        await at.nodes.level()
        for member in at.members:
            found = await member.client.get(COLLECTION, "shared")
            assert found.metadata == expected
            assert found.version == 201


@pytest.mark.timeout(90)
async def test_a_redis_cluster_that_loses_a_master(tmp_path: Path) -> None:
    with RedisCluster() as cluster:
        async with scene(tmp_path, cluster, count=2) as at, at.load():
            await at.more()
            await asyncio.to_thread(cluster.kill_owner, Keys.of(COLLECTION).state)
            await at.more()


@pytest.mark.parametrize("times", [1, 2])
async def test_what_only_a_dead_node_had_when_redis_forgot_is_written_again(
    tmp_path: Path, redis: RedisServer, times: int
) -> None:
    """The others agree without it. It comes back with index_versions that mean something else by now, copies the
    collection anew, and writes what it had once more: but for what others have changed, or deleted, meanwhile.

    They forget twice: found by thinking it through. What was known of the first time was forgotten the second time, so
    that the node went on with what it had.
    """
    async with fleet(tmp_path, redis) as nodes:
        await nodes.make()
        a, b, c = nodes.members
        await _write(a, dict.fromkeys(("gone", "both", "deleted", "kept"), 1))
        before = await nodes.level()
        async with audience(nodes) as subscribers:
            for member in (a, c):
                proxy_of(member).cut()
            await _write(b, dict.fromkeys(("alone", "both", "gone", "patched"), 2))
            await b.client.patch(COLLECTION, "patched", {"more": [1, 2]})
            await b.client.delete(COLLECTION, "deleted")
            b.kill()
            redis.flushall()
            for member in (a, c):
                await proxy_of(member).resume()
            for n in range(times):
                await _acknowledged(a, f"after{n}", before + 1 + n)
                if n + 1 < times:
                    redis.flushall()
            await c.client.delete(COLLECTION, "gone")
            await c.client.upsert(COLLECTION, id="both", **fits(3))
            await _write(a, {f"later{i}": i for i in range(10)})
            await b.start()

            async def copied_anew() -> bool:
                return bool(b.logged("copied_anew"))

            await eventually(copied_anew, "it copies the collection anew")
            await eventually(partial(_is_gone, a, "deleted"), "its last write is there again")
            await check(nodes, Facts(), subscribers)
            expected = {f"later{i}": {"n": i} for i in range(10)} | {f"after{n}": {"n": 1} for n in range(times)}
            expected |= {"first": {"n": 0}, "kept": {"n": 1}, "alone": {"n": 2}, "both": {"n": 3}}
            for member in nodes.members:
                documents = {i: one.metadata for i, one in (await member.documents()).items()}
                assert documents == expected | {"patched": {"n": 2, "more": [1, 2]}}
            resets = {recorder.name: recorder.resets for recorder in subscribers.recorders}
            assert resets == {"a": 1, "b": 2, "c": 1}, "each begins with one, and those of b start over"


async def _is_gone(member: Member, document_id: str) -> bool:
    try:
        await member.client.get(COLLECTION, document_id)
    except NotFound:
        return True
    return False


async def _acknowledged(member: Member, document_id: str, index_version: int) -> None:
    """Write as soon as the nodes have agreed; the write is to have that index_version."""
    while True:
        try:
            ack = await member.client.upsert(COLLECTION, id=document_id, **fits(1))
        except Unavailable:
            await asyncio.sleep(SETTLE_S / 10)
        else:
            assert ack.index_version == index_version
            return

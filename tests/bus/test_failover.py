"""A cluster and a sentinel's pair, whose masters end or are replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest

from gateway.bus.link import Link, LinkRefused, Script
from gateway.bus.wire import LinkLost, slot_of
from tests.bus.links import INCREMENT, insisted, linked, listening
from tests.redis_servers import RedisCluster, RedisSentinel, eventually

PUBLISH = Script("return redis.call(ARGV[1], KEYS[1], ARGV[2])")
KEYS = ("a", "b", "c")
"""One for each master: 15495, 3300, 7365."""

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sentinel() -> Iterator[RedisSentinel]:
    with RedisSentinel() as sentinel:
        yield sentinel


async def test_keys_and_commands_go_to_their_owners(cluster: RedisCluster) -> None:
    assert len({cluster.owner(key).port for key in KEYS}) == 3
    async with linked(cluster.url) as link:
        for key in KEYS:
            count = await link.run(INCREMENT, [f"{{{key}}}:n"], [])
            assert await link.command("GET", f"{{{key}}}:n") == str(count).encode()
            assert cluster.owner(key).cli("GET", f"{{{key}}}:n") == str(count)
            await link.command("XADD", f"{{{key}}}:s", "1-1", "k", "v")
            ((name, _),) = await link.command("XREAD", "COUNT", 1, "STREAMS", f"{{{key}}}:s", 0)
            assert name == f"{{{key}}}:s".encode()
            await link.command("DEL", f"{{{key}}}:s")
        with pytest.raises(LinkRefused, match="CROSSSLOT"):
            await link.run(INCREMENT, ["a", "b"], [])
        assert await link.command("PING") == b"PONG"


async def test_a_member_of_a_cluster_is_not_taken_for_a_single_server(cluster: RedisCluster) -> None:
    key = next(key for key in KEYS if cluster.owner(key) is not cluster.servers[0])
    async with linked(cluster.servers[0].url) as link:
        with pytest.raises(LinkRefused, match=r"redis\+cluster"):
            await link.command("GET", key)


async def test_redirections_are_followed(cluster: RedisCluster) -> None:
    """While a slot moves, a missing key is asked for at its new owner; afterwards the new owner is known."""
    key = "a"
    source, target = cluster.owner("a"), cluster.owner("b")
    source_id, target_id = source.cli("CLUSTER", "MYID"), target.cli("CLUSTER", "MYID")
    async with linked(cluster.url) as link:
        await link.command("DEL", key)
        target.cli("CLUSTER", "SETSLOT", slot_of(key), "IMPORTING", source_id)
        source.cli("CLUSTER", "SETSLOT", slot_of(key), "MIGRATING", target_id)
        target.cli("SCRIPT", "FLUSH")
        assert await link.run(INCREMENT, [key], []) == 1
        assert await link.run(INCREMENT, [key], []) == 2
        for server in (target, source):
            server.cli("CLUSTER", "SETSLOT", slot_of(key), "NODE", target_id)
        for runs in (3, 4):
            sent = link.commands_sent
            assert await link.run(INCREMENT, [key], []) == runs
        assert link.commands_sent - sent == 1
        await link.command("DEL", key)
    for server in (source, target):
        server.cli("CLUSTER", "SETSLOT", slot_of(key), "NODE", source_id)
    source.cli("CLUSTER", "BUMPEPOCH")
    eventually(lambda: cluster.settled() and cluster.owner(key) is source, "the slot is back")


async def test_messages_of_sharded_channels_come_from_their_owners(cluster: RedisCluster) -> None:
    async with linked(cluster.url) as link, listening(link) as ear:
        assert link.sharded
        for key in KEYS:
            await ear.subscriptions.subscribe(key)
            assert cluster.owner(key).cli("PUBSUB", "SHARDCHANNELS", key) == key
        for n in range(100):
            for key in KEYS:
                assert await link.run(PUBLISH, [key], [link.publish_command(), n]) == 1
        await ear.messages(300)
        for key in KEYS:
            assert [entry[1] for entry in ear.heard if entry[0] == key] == [str(n) for n in range(100)]
            await ear.subscriptions.unsubscribe(key)
            assert await link.command("SPUBLISH", key, "unheard") == 0


async def test_older_clusters_publish_to_all(cluster: RedisCluster) -> None:
    async with linked(cluster.url) as link, listening(link) as ear:
        link._sharded = False
        for key in KEYS:
            await ear.subscriptions.subscribe(key)
        for key in KEYS:
            await link.run(PUBLISH, [key], [link.publish_command(), key])
        await ear.messages(3)
        assert sorted(ear.heard) == [(key, key) for key in KEYS]


async def test_a_channel_follows_its_slot_to_a_new_owner(cluster: RedisCluster) -> None:
    """The old owner lives on, and says `sunsubscribe`."""
    async with linked(cluster.url) as link, listening(link) as ear:
        for key in KEYS:
            await ear.subscriptions.subscribe(key)
        count = await link.run(INCREMENT, ["a"], [])
        await asyncio.to_thread(cluster.switch_over, "a")
        assert await insisted(lambda: link.run(INCREMENT, ["a"], [])) == count + 1
        await ear.count("resubscribed")
        for key in KEYS:
            assert await link.command("SPUBLISH", key, key) == 1
        await ear.messages(3)


async def test_a_replica_that_was_master_is_not_listened_to(cluster: RedisCluster) -> None:
    """It would take the subscription, and hear of what the master is told only while both have a connection."""
    async with linked(cluster.url) as link, listening(link) as ear:
        assert await link.command("SPUBLISH", "a", "nobody hears") == 0
        await asyncio.to_thread(cluster.switch_over, "a")
        with pytest.raises(LinkLost, match="no master"):
            await ear.subscriptions.subscribe("a")
        await ear.subscriptions.subscribe("a")
        assert await link.command("SPUBLISH", "a", "heard") == 1
        await ear.messages(1)


async def test_a_killed_master_is_replaced(cluster: RedisCluster) -> None:
    async with linked(cluster.url, 1.0) as link, listening(link) as ear:
        for key in KEYS:
            await ear.subscriptions.subscribe(key)
        counts = {key: await link.run(INCREMENT, [key], []) for key in KEYS}
        assert await link.command("WAIT", 1, 1000) >= 0
        owner = await asyncio.to_thread(cluster.kill_owner, "b")
        await ear.count("lost")
        # Those of the other masters go on meanwhile.
        assert await insisted(lambda: link.command("SPUBLISH", "a", "meanwhile")) == 1
        await ear.until(lambda: ("a", "meanwhile") in ear.heard)
        assert "resubscribed" not in ear.heard
        assert await insisted(lambda: link.run(INCREMENT, ["b"], [])) in (counts["b"], counts["b"] + 1)
        assert cluster.owner("b") is not owner
        await ear.count("resubscribed")
        for key in KEYS:
            assert await insisted(partial(link.run, PUBLISH, [key], ["SPUBLISH", key])) == 1
        await ear.messages(4)
        owner.start()
        await asyncio.to_thread(eventually, cluster.settled, "the old master follows the new one")
        assert await insisted(lambda: link.run(INCREMENT, ["b"], [])) > 1


async def test_sentinels_name_the_new_master(sentinel: RedisSentinel) -> None:
    async with linked(sentinel.url, 1.0) as link, listening(link) as ear:
        assert not link.sharded
        await ear.subscriptions.subscribe("channel")
        assert await link.run(INCREMENT, ["n"], []) == 1
        assert await link.command("WAIT", 1, 1000) == 1
        old = await asyncio.to_thread(sentinel.kill_master)
        await ear.count("lost")
        assert await insisted(lambda: link.run(INCREMENT, ["n"], [])) == 2
        await ear.count("resubscribed")
        assert await insisted(lambda: link.command("PUBLISH", "channel", "heard")) == 1
        await ear.messages(1)
        assert sentinel.master is not old
        # It takes itself for a master, until a sentinel looks at it.
        old.start()
        assert await link.run(INCREMENT, ["n"], []) == 3


async def test_a_service_that_no_sentinel_knows_is_named(sentinel: RedisSentinel) -> None:
    link = Link(sentinel.url.replace(sentinel.service, "unknown"), timeout_s=1)
    with pytest.raises(Exception, match="service unknown is not known"):
        await link.open()
    await link.close()

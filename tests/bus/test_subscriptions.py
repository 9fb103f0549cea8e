"""Channels of a real server, over connections that it, a proxy or its end takes away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from gateway.bus.link import LinkLost, LinkRefused, Script
from tests.bus.links import Ear, insisted, linked, listening
from tests.ports import HOST, free_port
from tests.redis_servers import Proxy, RedisServer

PUBLISH_MANY = Script("for n = ARGV[1], ARGV[2] do redis.call('PUBLISH', KEYS[1 + n % #KEYS], n) end")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def listeners(server: RedisServer, channel: str) -> int:
    return int(server.cli("PUBSUB", "NUMSUB", channel).split()[1])


async def test_messages_come_in_the_order_of_publication(server: RedisServer) -> None:
    async with linked(server.url) as link, listening(link) as ear:
        await asyncio.gather(*map(ear.subscriptions.subscribe, "abc"))
        for first in range(0, 3000, 300):
            await link.run(PUBLISH_MANY, ["a", "b", "c"], [first, first + 299])
        assert await ear.messages(3000) == [str(n) for n in range(3000)]
        assert {entry[0] for entry in ear.heard} == set("abc")


async def test_nothing_comes_after_unsubscribe(server: RedisServer) -> None:
    async with linked(server.url) as link, listening(link) as ear:
        for channel in ("kept", "left"):
            await ear.subscriptions.subscribe(channel)
        publishing = asyncio.create_task(link.run(PUBLISH_MANY, ["left"], [1, 2000]))
        await ear.subscriptions.unsubscribe("left")
        heard = len(ear.heard)
        await publishing
        assert await link.command("PUBLISH", "left", "unheard") == 0
        assert await link.command("PUBLISH", "kept", "heard") == 1
        await ear.until(lambda: ("kept", "heard") in ear.heard)
        assert ear.heard[heard:] == [("kept", "heard")]
        await ear.subscriptions.unsubscribe("kept")
        await ear.subscriptions.unsubscribe("kept")
        await ear.subscriptions.subscribe("left")
        assert listeners(server, "left") == 1


async def test_a_cut_connection_is_told_once_and_comes_back(server: RedisServer) -> None:
    async with linked(server.url) as link, listening(link) as ear:
        for channel in ("first", "second"):
            await ear.subscriptions.subscribe(channel)
        for _ in range(3):
            ear.heard.clear()
            assert server.client_kill_pubsub() == 1
            await ear.count("resubscribed")
            for channel in ("first", "second"):
                assert await link.command("PUBLISH", channel, channel) == 1
            await ear.messages(2)
            assert ear.heard == ["lost", "resubscribed", ("first", "first"), ("second", "second")]


async def test_a_server_that_is_away_for_long_is_told_once() -> None:
    with RedisServer() as server:
        async with linked(server.url, 0.5) as link, listening(link) as ear:
            await ear.subscriptions.subscribe("channel")
            server.kill()
            await ear.count("lost")
            with pytest.raises(LinkLost, match="111"):
                await ear.subscriptions.subscribe("other")
            server.start()
            await ear.count("resubscribed")
            assert await insisted(lambda: link.command("PUBLISH", "channel", "heard")) == 1
            await ear.messages(1)
            assert ear.heard == ["lost", "resubscribed", ("channel", "heard")]
            assert listeners(server, "other") == 0


async def test_a_silent_connection_is_left_by_restart(server: RedisServer) -> None:
    async with (
        linked(server.url) as direct,
        Proxy(server.port) as proxy,
        linked(f"redis://{HOST}:{proxy.port}", 0.3) as link,
        listening(link) as ear,
    ):
        await ear.subscriptions.subscribe("channel")
        proxy.silence()
        assert await direct.command("PUBLISH", "channel", "swallowed") == 1
        await ear.subscriptions.restart()
        assert ear.heard == ["lost"]
        # Nor can it connect while the proxy is silent; it goes on trying.
        with pytest.raises(LinkLost):
            await ear.subscriptions.subscribe("other")
        await proxy.resume()
        await ear.count("resubscribed")
        assert await direct.command("PUBLISH", "channel", "heard") == 1
        await ear.messages(1)
        assert ear.heard == ["lost", "resubscribed", ("channel", "heard")]


async def test_what_was_not_confirmed_leaves_nothing_behind(server: RedisServer) -> None:
    async with Proxy(server.port) as proxy, linked(f"redis://{HOST}:{proxy.port}", 0.3) as link, listening(link) as ear:
        await ear.subscriptions.subscribe("first")
        proxy.silence()
        cancelled = asyncio.create_task(ear.subscriptions.subscribe("cancelled"))
        while not listeners(server, "cancelled"):
            await asyncio.sleep(0.01)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        with pytest.raises(LinkLost, match="not confirmed"):
            await ear.subscriptions.subscribe("late")
        await proxy.resume()
        await ear.count("resubscribed")
        assert {name: listeners(server, name) for name in ("first", "late", "cancelled")} == {
            "first": 1,
            "late": 0,
            "cancelled": 0,
        }


async def test_a_late_answer_is_not_taken_for_that_to_a_later_request(server: RedisServer) -> None:
    """A subscription that came too late is ended; the next one must not take its confirmation for its own."""
    async with (
        linked(server.url) as direct,
        Proxy(server.port) as proxy,
        linked(f"redis://{HOST}:{proxy.port}", 0.3) as link,
        listening(link) as ear,
    ):
        await ear.subscriptions.subscribe("first")
        proxy.delay(to_server_s=0.5)
        for _ in range(2):
            with pytest.raises(LinkLost):
                await ear.subscriptions.subscribe("channel")
        proxy.delay()
        await insisted(lambda: ear.subscriptions.subscribe("channel"))
        for n in range(50):
            assert await direct.command("PUBLISH", "channel", n) == 1
            await asyncio.sleep(0.01)  # while what was delayed arrives
        assert await ear.messages(50) == [str(n) for n in range(50)]


async def test_a_refused_channel_does_no_harm_to_others(server: RedisServer) -> None:
    server.cli("ACL", "SETUSER", "limited", "on", ">pass", "~*", "&mine:*", "+@all")
    async with linked(f"redis://limited:pass@{HOST}:{server.port}") as link, listening(link) as ear:
        await ear.subscriptions.subscribe("mine:a")
        with pytest.raises(LinkRefused, match="NOPERM"):
            await ear.subscriptions.subscribe("yours")
        await ear.subscriptions.subscribe("mine:b")
        await link.command("PUBLISH", "mine:a", "heard")
        await ear.messages(1)
        assert ear.heard == [("mine:a", "heard")]


async def test_a_message_that_its_owner_could_not_take_counts_as_lost(server: RedisServer) -> None:
    async with linked(server.url) as link, listening(link) as ear:
        await ear.subscriptions.subscribe("channel")
        ear.fault = ZeroDivisionError("of the test")
        await link.command("PUBLISH", "channel", "fatal")
        await ear.count("resubscribed")
        assert ear.heard == [("channel", "fatal"), "lost", "resubscribed"]


async def test_tls_carries_messages() -> None:
    with RedisServer(tls=True, password="secret") as server:
        async with linked(server.url) as link, listening(link) as ear:
            await ear.subscriptions.subscribe("channel")
            server.client_kill_pubsub()
            await ear.count("resubscribed")
            await link.command("PUBLISH", "channel", "heard")
            await ear.messages(1)


async def test_closed_subscriptions_end_what_waits(server: RedisServer) -> None:
    async with Proxy(server.port) as proxy, linked(f"redis://{HOST}:{proxy.port}", 20) as link:
        ear = Ear(link)
        await ear.subscriptions.subscribe("channel")
        proxy.silence()
        waiting = [
            asyncio.create_task(ear.subscriptions.subscribe("other")),
            asyncio.create_task(ear.subscriptions.unsubscribe("channel")),
        ]
        while listeners(server, "channel"):
            await asyncio.sleep(0.01)
        await ear.subscriptions.close()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [LinkLost, type(None)]
        assert ear.heard == []
        with pytest.raises(LinkLost):
            await ear.subscriptions.subscribe("channel")
        await ear.subscriptions.unsubscribe("channel")
        await ear.subscriptions.restart()


async def test_they_begin_without_a_server_and_pause_between_attempts() -> None:
    port = free_port()
    with RedisServer(port) as server:
        async with linked(server.url, 0.5) as link, listening(link) as ear:
            server.kill()
            with pytest.raises(LinkLost):
                await ear.subscriptions.subscribe("channel")
            server.start()
            await insisted(lambda: ear.subscriptions.subscribe("channel"))
            assert ear.heard == []
            assert listeners(server, "channel") == 1


async def test_a_silent_connection_holds_nobody_up(server: RedisServer) -> None:
    """A stopping gateway waited for ever for the end of a subscription, and a starting one asked the same silent
    connection again and again.
    """
    async with (
        Proxy(server.port) as proxy,
        linked(f"redis://{HOST}:{proxy.port}", 0.3) as link,
        listening(link) as ear,
    ):
        await ear.subscriptions.subscribe("one")
        await ear.subscriptions.subscribe("two")
        proxy.mute_subscribers()
        await ear.subscriptions.unsubscribe("one")
        assert ear.heard == ["lost"]
        await proxy.resume()
        await ear.count("resubscribed")
        proxy.mute_subscribers()
        with pytest.raises(LinkLost, match="not confirmed"):
            await ear.subscriptions.subscribe("three")
        await ear.count("lost", 2)
        await insisted(lambda: ear.subscriptions.subscribe("three"))

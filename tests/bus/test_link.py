"""Scripts and commands on a real server, with a proxy that loses what the test wants lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from gateway.bus import scripts
from gateway.bus.link import CONNECTIONS, Link, LinkLost, LinkRefused, Script
from tests.bus.links import INCREMENT, insisted, linked, raised
from tests.ports import HOST, free_port
from tests.redis_servers import Proxy, RedisServer

ECHO = Script("return {ARGV[1], #ARGV[1], redis.call('GET', KEYS[1])}")


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with RedisServer(config={"enable-debug-command": "yes", "loading-process-events-interval-bytes": "1024"}) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    shared_server.flushall()
    return shared_server


async def test_arguments_and_replies_are_bytes(server: RedisServer) -> None:
    async with linked(server.url) as link:
        await link.command("SET", "key", b"\xff\x00")
        assert await link.run(ECHO, ["key"], [b"\r\n\xfe"]) == [b"\r\n\xfe", 3, b"\xff\x00"]
        assert await link.run(ECHO, ["none"], ["é"]) == ["é".encode(), 2, None]
        await link.command("HSET", "hash", "a", 1, "b", b"2")
        assert await link.command("HGETALL", "hash") == [b"a", b"1", b"b", b"2"]
        assert b"redis_version" in await link.command("INFO", "server")
        assert not link.sharded
        assert link.publish_command() == "PUBLISH"


async def test_a_script_is_loaded_where_it_is_missing(server: RedisServer) -> None:
    async with linked(server.url) as link:
        server.cli("SCRIPT", "FLUSH")
        for runs, commands in ((1, 3), (2, 1)):
            sent = link.commands_sent
            assert await link.run(INCREMENT, ["n"], []) == runs
            assert link.commands_sent - sent == commands


async def test_calls_at_the_same_time_share_few_connections(server: RedisServer) -> None:
    async with linked(server.url) as link:
        counts = await asyncio.gather(*(link.run(INCREMENT, ["n"], []) for _ in range(100)))
        assert sorted(counts) == list(range(1, 101))
        clients = await link.command("CLIENT", "LIST")
        assert clients.count(b"name=hotindex ") == CONNECTIONS


async def test_what_was_not_answered_in_time_is_in_doubt_and_not_sent_again(server: RedisServer) -> None:
    async with Proxy(server.port) as proxy, linked(f"redis://{HOST}:{proxy.port}", 0.3) as link:
        assert await link.run(INCREMENT, ["n"], []) == 1
        proxy.silence()
        with pytest.raises(LinkLost, match=r"EVALSHA: no answer in 0\.3 s") as lost:
            await link.run(INCREMENT, ["n"], [])
        assert lost.value.in_doubt
        assert server.cli("GET", "n") == "2"
        await proxy.resume()
        assert await link.run(INCREMENT, ["n"], []) == 3


async def test_what_was_cut_on_the_way_is_in_doubt_and_not_sent_again(server: RedisServer) -> None:
    async with Proxy(server.port) as proxy, linked(f"redis://{HOST}:{proxy.port}", 20) as link:
        await link.run(INCREMENT, ["n"], [])
        proxy.silence()
        running = asyncio.create_task(link.run(INCREMENT, ["n"], []))
        async with linked(server.url) as direct:
            while await direct.command("GET", "n") != b"2":
                pass
        proxy.reset()
        with pytest.raises(LinkLost) as lost:
            await running
        assert lost.value.in_doubt
        await proxy.resume()
        assert await link.run(INCREMENT, ["n"], []) == 3


async def test_a_call_takes_no_longer_than_its_time_whoever_waits(server: RedisServer) -> None:
    async with Proxy(server.port) as proxy, linked(f"redis://{HOST}:{proxy.port}", 0.3) as link:
        proxy.silence()
        started = time.monotonic()
        calls = [link.run(INCREMENT, ["n"], []) for _ in range(4 * CONNECTIONS)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - started < 0.3 + 0.5
        assert all(isinstance(end, LinkLost) for end in ends)
        # Those that waited for a connection, or for its beginning, know that nothing happened.
        assert sum(isinstance(end, LinkLost) and end.in_doubt for end in ends) == int(server.cli("GET", "n")) == 1


async def test_an_unreachable_server_is_lost_without_a_doubt() -> None:
    link = Link(f"redis://{HOST}:{free_port()}", timeout_s=1)
    with pytest.raises(LinkLost, match="111") as lost:
        await link.open()
    assert not lost.value.in_doubt
    await link.close()


async def test_a_cancelled_call_leaves_no_answer_for_the_next(server: RedisServer) -> None:
    async with Proxy(server.port) as proxy, linked(f"redis://{HOST}:{proxy.port}") as link:
        await link.run(ECHO, ["key"], ["first"])
        proxy.delay(to_client_s=0.1)
        cancelled = asyncio.create_task(link.run(ECHO, ["key"], ["second"]))
        seen = proxy.bytes_to_server
        while proxy.bytes_to_server == seen:
            await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert (await link.run(ECHO, ["key"], ["third"]))[0] == b"third"


async def test_a_closed_link_ends_its_calls(server: RedisServer) -> None:
    async with Proxy(server.port) as proxy:
        async with linked(f"redis://{HOST}:{proxy.port}", 20) as link:
            proxy.silence()
            calls = [asyncio.create_task(link.run(INCREMENT, ["n"], [])) for _ in range(4 * CONNECTIONS)]
            seen = proxy.bytes_to_server
            while proxy.bytes_to_server == seen:
                await asyncio.sleep(0)
        ends = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
        assert {type(end) for end in ends} == {LinkLost}


async def test_it_works_again_after_a_restart(server: RedisServer) -> None:
    async with linked(server.url) as link:
        await asyncio.gather(*(link.run(INCREMENT, ["n"], []) for _ in range(20)))
        server.restart()
        assert await insisted(lambda: link.run(INCREMENT, ["n"], [])) == 1


async def test_errors_of_a_command_are_refusals_that_name_it(server: RedisServer) -> None:
    async with linked(server.url) as link:
        await link.command("RPUSH", "list", "x")
        with pytest.raises(LinkRefused, match=r"^INCR: WRONGTYPE"):
            await link.command("INCR", "list")
        with pytest.raises(LinkRefused, match=r"^EVALSHA: WRONGTYPE"):
            await link.run(INCREMENT, ["list"], [])
        with pytest.raises(LinkRefused, match=r"^EVALSHA: TAKEN by me"):
            await link.run(Script("return redis.error_reply('TAKEN by me')"), [], [])
        with pytest.raises(LinkRefused, match=r"^SCRIPT: ERR Error compiling"):
            await link.run(Script("return ("), [], [])
        with pytest.raises(LinkRefused, match=r"^EVALSHA: ERR .*nonexistent global variable"):
            await link.run(Script("return nothing.at_all"), [], [])


async def test_a_server_that_cannot_serve_just_now_is_lost_without_a_doubt(server: RedisServer) -> None:
    async with linked(server.url) as link:
        await link.run(INCREMENT, ["n"], [])
        server.cli("REPLICAOF", HOST, free_port())
        with pytest.raises(LinkLost, match="READONLY") as readonly:
            await link.run(INCREMENT, ["n"], [])
        server.cli("REPLICAOF", "NO", "ONE")
        server.cli("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(LinkLost, match="OOM") as full:
            await link.run(INCREMENT, ["n"], [])
        server.cli("CONFIG", "SET", "maxmemory", 0)
        assert not readonly.value.in_doubt
        assert not full.value.in_doubt
        assert await link.run(INCREMENT, ["n"], []) == 2


async def test_a_server_that_loads_its_data_is_lost_without_a_doubt(server: RedisServer) -> None:
    server.cli("DEBUG", "POPULATE", 2000)
    server.cli("CONFIG", "SET", "key-load-delay", 500)
    reload = threading.Thread(target=server.cli, args=("DEBUG", "RELOAD"))
    async with linked(server.url) as link:
        reload.start()
        lost = await raised(lambda: link.run(INCREMENT, ["n"], []))
        assert "LOADING" in str(lost)
        assert not lost.in_doubt
        await asyncio.to_thread(reload.join)
        assert await link.run(INCREMENT, ["n"], []) > 0
    server.cli("CONFIG", "SET", "key-load-delay", 0)


async def test_passwords_are_checked_and_not_told() -> None:
    with RedisServer(password="hunter2") as server:
        async with linked(server.url) as link:
            assert await link.run(INCREMENT, ["n"], []) == 1
        for url in (f"redis://{HOST}:{server.port}", f"redis://:hunter3@{HOST}:{server.port}"):
            refused = Link(url, timeout_s=1)
            with pytest.raises(LinkRefused, match=r"NOAUTH|WRONGPASS") as raised:
                await refused.open()
            assert "hunter" not in str(raised.value)
            await refused.close()


async def test_what_a_user_may_not_do_is_refused(server: RedisServer) -> None:
    server.cli("ACL", "SETUSER", "limited", "on", ">pass", "~mine:*", "&mine:*", "+@all", "-flushall")
    async with linked(f"redis://limited:pass@{HOST}:{server.port}") as link:
        assert await link.run(INCREMENT, ["mine:n"], []) == 1
        with pytest.raises(LinkRefused, match=r"^EVALSHA: NOPERM"):
            await link.run(INCREMENT, ["yours:n"], [])
        with pytest.raises(LinkRefused, match=r"^FLUSHALL: NOPERM"):
            await link.command("FLUSHALL")


async def test_the_db_of_the_url_is_used(server: RedisServer) -> None:
    async with linked(f"{server.url}/3") as link:
        await link.command("SET", "key", "third")
        assert server.cli("-n", 3, "GET", "key") == "third"


async def test_tls_with_certificates_on_both_sides() -> None:
    with RedisServer(tls=True) as server:
        files = server.certificates
        assert files is not None
        async with linked(server.url) as link:
            assert await link.run(INCREMENT, ["n"], []) == 1
            server.cli("CONFIG", "SET", "tls-auth-clients", "yes")
        own = f"&ssl_certfile={files.certificate}&ssl_keyfile={files.key}"
        async with linked(server.url + own) as link:
            assert await link.run(INCREMENT, ["n"], []) == 2
        for url in (server.url, f"redis://{HOST}:{server.port}"):
            lost = Link(url, timeout_s=1)
            with pytest.raises(LinkLost):
                await lost.open()
            await lost.close()
        refused = Link(f"rediss://{HOST}:{server.port}", timeout_s=1)
        with pytest.raises(LinkRefused, match="CERTIFICATE_VERIFY_FAILED"):
            await refused.open()
        await refused.close()


async def test_users_are_registered_while_their_collection_is_and_dropped_with_it(server: RedisServer) -> None:
    """Whichever node, however late it hears of a drop, there are no users without their collection."""
    async with linked(server.url) as link:
        register, dropped = "register", "dropped"

        async def create(name: str, life: str, *owner: str) -> bytes | None:
            found: bytes | None = await link.run(scripts.CREATE, [register], [name, life, *owner])
            return found

        assert await create("a~users", "u1 {}", "a", "e1") is None, "there is no such collection"
        assert await create("a", "e1 {}") == b"e1 {}"
        assert await create("a~users", "u1 {}", "a", "e1") == b"u1 {}"
        assert await create("a~users", "u2 {}", "a", "e1") == b"u1 {}", "another node was first"
        await link.run(scripts.DROP, [register, dropped], ["a", "e", "a~users"])
        assert await link.command("HLEN", register) == 2, "an epoch that begins alike is another"
        await link.run(scripts.DROP, [register, dropped], ["a", "e1", "a~users"])
        assert await link.command("HLEN", register) == 0
        assert sorted(await link.command("SMEMBERS", dropped)) == [b"e", b"e1", b"u1"]
        assert await create("a", "e2 {}") == b"e2 {}"
        assert await create("a~users", "u2 {}", "a", "e1") is None, "they would be users of the collection before"
        assert await create("a~users", "u2 {}", "a", "e2") == b"u2 {}"

"""What holds for any bus; and, where several nodes share one, between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.bus.agreement import Keys
from gateway.bus.shared import SharedOptions
from gateway.engine.types import Done, Patch, Remove, Status, Write
from gateway.errors import Conflict, InvalidArgument, NotFound, StorageUnavailable
from tests.bus.links import linked
from tests.bus.nodes import Member, Nodes, alone
from tests.engine.support import put, write
from tests.redis_servers import RedisServer


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def nodes(redis: RedisServer, tmp_path: Path) -> Nodes:
    redis.flushall()
    return Nodes(tmp_path, redis.url, SharedOptions("", settle_s=0.3))


@pytest.fixture
async def pair(nodes: Nodes) -> AsyncIterator[tuple[Member, Member]]:
    async with nodes.member("a") as a, nodes.member("b") as b:
        yield a, b


@pytest.fixture(params=["local", "redis"])
async def member(request: pytest.FixtureRequest, nodes: Nodes, tmp_path: Path) -> AsyncIterator[Member]:
    async with AsyncExitStack() as stack:
        if request.param == "local":
            yield await stack.enter_async_context(alone(tmp_path))
        else:
            yield await stack.enter_async_context(nodes.member("a"))
            await nodes.level()


async def test_commits_are_numbered_without_gaps_and_published_before_they_are_acknowledged(member: Member) -> None:
    first, second = await member.ended(write(put("a", 1, 2, 3, 4)), write(put("b", 1, 2, 3, 4), put("a", 4, 3, 2, 1)))
    assert isinstance(first, Done)
    assert isinstance(second, Done)
    assert (first.index_version, second.index_version) == (1, 3)
    assert member.log.seen == [(1, "a", 1), (2, "b", 1), (3, "a", 2)]
    assert [(item.id, item.version, item.status) for item in second.results] == [
        ("b", 1, Status.INSERTED),
        ("a", 2, Status.UPDATED),
    ]
    assert member.collection.index_version == 3


async def test_what_changes_nothing_takes_no_number(member: Member) -> None:
    await member.ended(write(put("a", 1, 2, 3, 4)))
    same, missing, known = await member.ended(
        write(put("a", 1, 2, 3, 4)), write(Remove("nobody")), write(put("b", 1, 2, 3, 4))
    )
    assert isinstance(same, Done)
    assert isinstance(missing, Done)
    assert isinstance(known, Done)
    assert (same.results[0].status, missing.results[0].status) == (Status.UNCHANGED, Status.MISSING)
    assert (same.index_version, known.index_version) == (1, 2)


async def test_a_write_that_fails_leaves_the_others_alone(member: Member) -> None:
    outcomes = await member.ended(
        write(put("a", 1, 2, 3, 4)),
        write(put("b", 1, 2, 3, 4), Patch("nobody", {"x": 1})),
        write(put("a", 4, 3, 2, 1, if_version=7)),
        write(put("c", metadata={"x": 1})),
        write(put("d", 1, 2, 3, 4)),
    )
    assert [type(outcome) for outcome in outcomes] == [Done, NotFound, Conflict, InvalidArgument, Done]
    assert [document_id for _, document_id, _ in member.log.seen] == ["a", "d"]


async def test_an_event_id_is_applied_once(member: Member) -> None:
    event = write(put("a", 1, 2, 3, 4), event_id="e1")
    again = write(put("a", 9, 9, 9, 9), event_id="e1")
    (first,) = await member.ended(event)
    (second,) = await member.ended(again)
    assert isinstance(first, Done)
    assert isinstance(second, Done)
    assert (second.index_version, second.results[0].status) == (first.index_version, Status.DUPLICATE)
    assert len(member.log.seen) == 1


async def test_deltas_in_one_commit_build_on_each_other(member: Member) -> None:
    await member.ended(write(put("a", 1, 2, 3, 4)))
    await member.ended(write(Patch("a", {"x": 1})), write(Patch("a", {"y": 2})), write(Patch("a", {"x": None})))
    found = member.collection.get("a")
    assert found is not None
    assert (found[0].metadata, found[0].version) == ('{"y":2}', 4)


async def test_a_version_is_never_used_again(member: Member) -> None:
    await member.ended(write(put("a", 1, 2, 3, 4)), write(Remove("a")), write(put("a", 1, 2, 3, 4)))
    assert [version for _, _, version in member.log.seen] == [1, 2, 3]


async def test_every_node_applies_every_change_in_one_order(nodes: Nodes, pair: tuple[Member, Member]) -> None:
    a, b = pair
    await asyncio.gather(
        *(one.ended(write(put(f"{one.name}{i}", i, 2, 3, 4))) for one in pair for i in (0,)),
    )
    for i in range(20):
        await asyncio.gather(
            a.ended(*(write(put(f"a{i}-{j}", 1, 2, 3, 4)) for j in range(3))),
            b.ended(write(put(f"b{i}", 4, 3, 2, 1), put("shared", i, 1, 1, 1))),
        )
    await nodes.level()
    assert a.log.seen == b.log.seen
    assert a.collection.index_version == 2 + 20 * 5


async def test_two_nodes_that_change_one_document_lose_nothing(nodes: Nodes, pair: tuple[Member, Member]) -> None:
    """Each delta sets a key of its own: one merged into the wrong base would take another's away."""
    a, b = pair
    await a.ended(write(put("x", 1, 2, 3, 4)))

    async def writer(one: Member) -> None:
        for i in range(60):
            (outcome,) = await one.ended(Write((Patch("x", {f"{one.name}{i}": i}),)))
            assert isinstance(outcome, Done)

    await asyncio.gather(writer(a), writer(b))
    await nodes.level()
    found = a.collection.get("x")
    assert found is not None
    assert found[0].version == 121
    assert found[0].metadata.count(":") == 120


async def test_if_version_holds_between_nodes(nodes: Nodes, pair: tuple[Member, Member]) -> None:
    a, b = pair
    (done,) = await a.ended(write(put("x", 1, 2, 3, 4)))
    assert isinstance(done, Done)
    outcomes = await asyncio.gather(
        *(one.ended(write(put("x", i, 0, 0, 0, if_version=1))) for i, one in enumerate([a, b, a, b]) if i < 2)
    )
    kinds = sorted(type(outcome).__name__ for (outcome,) in outcomes)
    assert kinds == ["Conflict", "Done"]
    (second,) = await b.ended(write(put("x", 7, 7, 7, 7, if_version=2)))
    assert isinstance(second, Done)
    await nodes.level()


async def test_a_node_that_is_behind_makes_no_false_conflict(nodes: Nodes, pair: tuple[Member, Member]) -> None:
    """It has to look whether it is up to date before it says so: b hasn't applied what a has been told is done."""
    a, b = pair
    for version in range(30):
        one, other = (a, b) if version % 2 else (b, a)
        (done,) = await one.ended(write(put("x", version, 2, 3, 4, if_version=version)))
        assert isinstance(done, Done), done
        assert other is not one


async def test_an_event_id_is_applied_once_among_nodes(nodes: Nodes, pair: tuple[Member, Member]) -> None:
    for i in range(10):
        outcomes = await asyncio.gather(
            *(one.ended(write(put(f"{one.name}{i}", 1, 2, 3, 4), event_id=f"e{i}")) for one in pair)
        )
        statuses = sorted(outcome.results[0].status for (outcome,) in outcomes if isinstance(outcome, Done))
        assert statuses == [Status.DUPLICATE, Status.INSERTED]
    await nodes.level()


async def test_atomic_writes_are_whole_on_every_node(nodes: Nodes, pair: tuple[Member, Member]) -> None:
    a, b = pair
    await asyncio.gather(
        a.ended(write(put("x", 1, 1, 1, 1), put("y", 1, 1, 1, 1), atomic=True)),
        b.ended(write(put("y", 2, 2, 2, 2), put("x", 2, 2, 2, 2), atomic=True)),
    )
    await nodes.level()
    assert [[type(event).__name__ for event in applied.events] for applied in b.log.applied] == [
        ["Change", "Change", "BatchComplete"],
        ["Change", "Change", "BatchComplete"],
    ] or len(b.log.applied) == 1


async def test_a_node_that_was_away_reads_what_it_missed_from_the_stream(nodes: Nodes) -> None:
    async with nodes.member("a") as a:
        async with nodes.member("b"):
            await a.ended(write(put("x", 1, 2, 3, 4)))
            await nodes.level()
        for i in range(200):
            await a.ended(write(put(f"d{i}", i, 2, 3, 4)))
        async with nodes.member("b") as b:
            await nodes.level()
            assert [index_version for index_version, _, _ in b.log.seen] == list(range(2, 202))


async def test_a_node_further_behind_than_the_stream_copies_from_another(redis: RedisServer, tmp_path: Path) -> None:
    redis.flushall()
    nodes = Nodes(tmp_path, redis.url, SharedOptions("", settle_s=0.3, keep_changes=10))
    async with nodes.member("a") as a:
        async with nodes.member("b"):
            await a.ended(write(put("gone", 1, 2, 3, 4), put("kept", 1, 2, 3, 4)))
            await nodes.level()
        await a.ended(write(Remove("gone")))
        for i in range(400):
            await a.ended(write(put(f"d{i % 150}", i, 2, 3, 4)))
        async with nodes.member("b") as b:
            await nodes.level()
            (done,) = await b.ended(write(put("gone", 1, 2, 3, 4)))
            assert isinstance(done, Done)
            assert done.results[0].version == 3
            await nodes.level()


async def test_writes_are_refused_in_time_while_redis_is_away(tmp_path: Path) -> None:
    with RedisServer() as redis:
        nodes = Nodes(tmp_path, redis.url, SharedOptions("", wait_s=0.5, settle_s=0.3))
        async with nodes.member("a") as a, nodes.member("b") as b:
            await a.ended(write(put("x", 1, 2, 3, 4)))
            await nodes.level()
            redis.kill()
            for _ in range(5):
                (refused,) = await a.ended(write(put("y", 1, 2, 3, 4)))
                assert isinstance(refused, StorageUnavailable)
            assert a.bus.fault
            assert b.collection.get("x")
            redis.restart()
            while isinstance((await b.ended(write(put("z", 1, 2, 3, 4))))[0], StorageUnavailable):
                pass
            await nodes.level()
            assert [index_version for index_version, _, _ in a.log.seen] == [1, 2]


async def test_an_emptied_redis_goes_on_where_the_nodes_are(redis: RedisServer, nodes: Nodes) -> None:
    async with nodes.member("a") as a, nodes.member("b") as b:
        for i in range(5):
            await a.ended(write(put(f"d{i}", 1, 2, 3, 4)))
        redis.flushall()
        (done,) = await b.ended(write(put("z", 1, 2, 3, 4)))
        assert isinstance(done, Done)
        assert done.index_version == 6
        await nodes.level()


async def test_the_furthest_node_decides_where_an_emptied_redis_goes_on(redis: RedisServer, nodes: Nodes) -> None:
    async with nodes.member("a") as a:
        async with nodes.member("b"):
            await nodes.level()
        for i in range(5):
            await a.ended(write(put(f"d{i}", 1, 2, 3, 4)))
    redis.flushall()
    nodes.away = 1
    async with nodes.member("b") as b, nodes.member("a"):
        nodes.away = 0
        (done,) = await b.ended(write(put("z", 1, 2, 3, 4)))
        assert isinstance(done, Done)
        assert done.index_version == 6
        await nodes.level()


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"no header",
        b"{epoch} {term} {next} {next}\n\x90",
        b"{epoch} {term} {next} 1000000000000000000\n\x90",
        b"{epoch} {term} {next} {next}\n\xc1",
        b"{epoch} 999 5 1\n\x90",
    ],
)
async def test_rubbish_on_the_channel_stops_nobody(
    redis: RedisServer, nodes: Nodes, pair: tuple[Member, Member], rubbish: bytes
) -> None:
    a, b = pair
    await a.ended(write(put("x", 1, 2, 3, 4)))
    await nodes.level()
    facts = {"epoch": a.collection.epoch, "term": a.collection.writer.term, "next": a.collection.index_version + 1}
    for name, value in facts.items():
        rubbish = rubbish.replace(b"{%s}" % name.encode(), str(value).encode())
    async with linked(redis.url) as link:
        await link.command("PUBLISH", Keys.of("things").channel, rubbish)
    (done,) = await b.ended(write(put("y", 1, 2, 3, 4)))
    assert isinstance(done, Done)
    await nodes.level()


async def test_without_knowing_what_was_written_last_nothing_is_given_a_place_beside_it(
    redis: RedisServer, nodes: Nodes, pair: tuple[Member, Member]
) -> None:
    a, b = pair
    await a.ended(write(put("x", 1, 2, 3, 4)))
    for version in range(1, 30):
        await nodes.level()
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(redis.cli, "DEL", Keys.of("things").recent))
            races = [
                group.create_task(one.ended(write(put("x", version, i, 0, 0, if_version=version))))
                for i, one in enumerate((a, b))
            ]
        kinds = sorted(type(race.result()[0]).__name__ for race in races)
        assert kinds == ["Conflict", "Done"]


async def test_what_redis_refuses_is_refused_as_retryable(redis: RedisServer, tmp_path: Path) -> None:
    redis.flushall()
    nodes = Nodes(tmp_path, redis.url, SharedOptions("", wait_s=0.5, settle_s=0.3))
    async with nodes.member("a") as a, nodes.member("b"):
        await a.ended(write(put("x", 1, 2, 3, 4)))
        redis.cli("DEL", Keys.of("things").recent)
        redis.cli("SET", Keys.of("things").recent, "no sorted set")
        (refused,) = await a.ended(write(put("y", 1, 2, 3, 4)))
        assert isinstance(refused, StorageUnavailable)
        assert "WRONGTYPE" in refused.message
        redis.cli("DEL", Keys.of("things").recent)
        while isinstance((await a.ended(write(put("z", 1, 2, 3, 4))))[0], StorageUnavailable):
            pass
        await nodes.level()


async def test_what_a_dropped_life_left_in_redis_goes(redis: RedisServer, nodes: Nodes) -> None:
    """A node that hasn't heard of a drop puts the old life's state back: the new one found it there, and stood still."""
    redis.flushall()
    keys, old = Keys.of("things"), "d" * 32
    nodes.gone.add(old)
    redis.cli("HSET", keys.state, "epoch", old, "head", 7, "floor", 7, "term", 3, "starts", "3:7 ")
    run = next(line for line in redis.cli("INFO", "server").splitlines() if line.startswith("run_id:"))
    redis.cli("HSET", keys.state, "run", run.partition(":")[2].strip())
    async with nodes.member("a") as a:
        (done,) = await a.ended(write(put("x", 1, 2, 3, 4)))
        assert isinstance(done, Done)
        assert done.index_version == 1

"""What nodes do with an order that they have agreed on anew."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.bus import scripts
from gateway.bus.agreement import Keys, read_state
from gateway.bus.follower import Follower
from gateway.bus.link import Link, LinkLost, Script, Value
from gateway.bus.shared import SharedBus, SharedOptions
from gateway.engine.types import Done, Patch, Write
from gateway.errors import StorageUnavailable
from tests.bus.nodes import EPOCH, Member, Nodes
from tests.engine.support import put, write
from tests.redis_servers import RedisServer, eventually


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def nodes(redis: RedisServer, tmp_path: Path) -> Nodes:
    redis.flushall()
    return Nodes(tmp_path, redis.url, SharedOptions("", settle_s=0.3))


def shared(member: Member) -> SharedBus:
    assert isinstance(member.bus, SharedBus)
    return member.bus


async def term_and_log(redis: RedisServer, member: Member) -> tuple[int, list[bytes]]:
    """Return the present term, and the messages there are."""
    link = Link(redis.url, timeout_s=5.0)
    try:
        state = await read_state(link, shared(member).keys)
        entries = await link.command("XRANGE", shared(member).keys.log, "-", "+")
    finally:
        await link.close()
    assert state is not None
    return state.term, [message for _, (_, message) in entries]


async def test_a_message_of_a_term_that_is_over_is_not_applied(redis: RedisServer, nodes: Nodes) -> None:
    """It came while the nodes agreed to go on without it; it waited, and was applied in the term that began then, where
    the others have something else at its index_version.
    """
    async with nodes.member("a") as a:
        await a.ended(write(put("x", 1, 2, 3, 4)))
        term, (message,) = await term_and_log(redis, a)
        late = message.replace(f"{EPOCH} {term} 1 1".encode(), f"{EPOCH} {term} 2 2".encode())
        assert late != message
        redis.flushall()
        nodes.away = 1
        shared(a).distrust()
        await asyncio.to_thread(
            eventually, lambda: redis.cli("EXISTS", shared(a).keys.claims) == "1", "it has said what it has"
        )
        shared(a).take(late)
        (done,) = await a.ended(write(put("y", 1, 2, 3, 4)))
        assert isinstance(done, Done)
        assert a.log.seen == [(1, "x", 1), (2, "y", 1)]


async def test_a_node_that_has_not_heard_of_a_new_term_gets_no_place_in_it(redis: RedisServer, nodes: Nodes) -> None:
    """It has prepared on what the others have given up: what they wrote at the same index_versions would be lost on it."""
    async with nodes.member("a") as a:
        await a.ended(write(put("x", 1, 2, 3, 4)))
        state = shared(a).keys.state
        term = redis.cli("HGET", state, "term")
        redis.cli("HSET", state, "term", int(term) + 1, "starts", f"{term}:0 {int(term) + 1}:1 ")
        (done,) = await a.ended(write(Patch("x", {"y": 1})))
        assert isinstance(done, Done)
        assert shared(a).term == int(term) + 1, "it looked first"
        assert (await term_and_log(redis, a))[1][-1].startswith(f"{EPOCH} {int(term) + 1} 2 2".encode())


async def test_what_was_known_of_terms_outlives_redis(redis: RedisServer, nodes: Nodes) -> None:
    """Who was away since the first of them has to learn where the second began."""
    async with nodes.member("a") as a:
        heads = []
        for i in range(3):
            (done,) = await a.ended(write(put(f"d{i}", 1, 2, 3, 4)))
            assert isinstance(done, Done)
            heads.append(done.index_version)
            redis.flushall()
            shared(a).distrust()
        await a.ended(write(put("last", 1, 2, 3, 4)))
        starts = [pair.split(":") for pair in redis.cli("HGET", shared(a).keys.state, "starts").split()]
        assert [int(start) for _, start in starts] == [0, *heads]
        terms = [int(term) for term, _ in starts]
        assert terms == sorted(set(terms))


def test_a_follower_takes_of_earlier_terms_what_still_has_its_place() -> None:
    follower = Follower("e", 30, 5)
    follower.starts = [(10, 0), (20, 7), (30, 9)]
    assert follower.holds(10, 7)
    assert not follower.holds(10, 8)
    assert follower.holds(20, 9)
    assert not follower.holds(20, 10)
    assert follower.holds(30, 100)


async def test_what_was_known_of_terms_outlives_nodes_too(redis: RedisServer, nodes: Nodes) -> None:
    async with nodes.member("a") as a:
        for i in range(2):
            await a.ended(write(put(f"d{i}", 1, 2, 3, 4)))
            redis.flushall()
            shared(a).distrust()
        await a.ended(write(put("last", 1, 2, 3, 4)))
        before = redis.cli("HGET", shared(a).keys.state, "starts").split()
    redis.flushall()
    async with nodes.member("a") as a:
        await a.ended(write(put("another", 1, 2, 3, 4)))
        assert redis.cli("HGET", shared(a).keys.state, "starts").split()[:-1] == before
        assert len(before) == 3


@pytest.fixture(params=["by the stream", "by copying"])
def comes_back(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_write_whose_answer_was_lost_is_no_conflict_with_itself(
    redis: RedisServer, nodes: Nodes, comes_back: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the soak, seed 1. Where it came back in a copy nobody can tell whose it is, and it was prepared once more,
    on top of itself: that is left open now. Where it came by the stream, or has an event id, it is known again.
    """
    async with nodes.member("a") as a, nodes.member("b") as b:
        await a.ended(write(put("x", 1, 2, 3, 4)))
        await nodes.level()
        bus = shared(a)
        run = bus._link.run

        async def lost(script: Script, keys: Sequence[str], args: Sequence[Value]) -> Any:
            reply = await run(script, keys, args)
            if script is scripts.PROPOSE:
                monkeypatch.setattr(bus._link, "run", run)
                while b.collection.index_version < int(reply[1]) + 1:
                    await asyncio.sleep(0.01)
                if comes_back == "by copying":
                    redis.cli("XTRIM", bus.keys.log, "MAXLEN", "0")
                raise LinkLost("its answer is lost", in_doubt=True)
            return reply

        monkeypatch.setattr(bus, "take", lambda _: None)
        for event_id, version in (("e1", 2), (None, 3)):
            monkeypatch.setattr(bus._link, "run", lost)
            change = Patch("x", {"y": version}, if_version=version - 1)
            (outcome,) = await a.ended(Write((change,), event_id=event_id))
            if comes_back == "by copying" and event_id is None:
                assert isinstance(outcome, StorageUnavailable)
            else:
                assert isinstance(outcome, Done), outcome
                assert outcome.results[0].version == version
        await nodes.level()
        found = b.collection.get("x")
        assert found is not None
        assert found[0].version == 3


_CLAIMS = [
    pytest.param([(103, 4, "4:0 "), (105, 4, "4:0 ")], 105, id="of one term who has most"),
    pytest.param([(103, 4, "4:0 "), (100, 5, "4:0 5:100 ")], 100, id="what a term began without is given up"),
    pytest.param([(98, 4, "4:0 "), (90, 5, "4:0 5:100 ")], 98, id="who has not caught up has less than the order"),
    pytest.param([(110, 6, "4:0 6:100 "), (104, 5, "4:0 5:98 ")], 110, id="a term that others know nothing of"),
    pytest.param([(96, 6, "4:0 6:100 "), (97, 5, "4:0 5:98 ")], 97, id="it began after what all have"),
    pytest.param([(7, 0, ""), (0, 0, "")], 7, id="no term yet"),
]


@pytest.mark.parametrize(("claims", "head"), _CLAIMS)
async def test_nodes_agree_on_the_longest_beginning_of_one_order(
    redis: RedisServer, claims: list[tuple[int, int, str]], head: int
) -> None:
    """A term on its own doesn't tell who has more: one may have begun with it before it had caught up."""
    redis.flushall()
    keys = Keys.of("agreed")
    link = Link(redis.url, timeout_s=5.0)
    try:
        for i, claim in enumerate(claims):
            args = ("epoch", len(claims), 10_000, f"node{i}", *claim)
            reply = await link.run(scripts.RESTORE, (keys.state, keys.log, keys.recent, keys.claims), args)
        state = await read_state(link, keys)
    finally:
        await link.close()
    assert reply == [b"done"]
    assert state is not None
    assert (state.head, state.floor) == (head, head)
    assert state.starts[-1] == (state.term, head)
    assert state.term > max(term for _, term, _ in claims)

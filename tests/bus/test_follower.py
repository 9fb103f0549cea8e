"""What comes next, what is late, and what is missing."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.bus import follower as followers
from gateway.bus.batches import Header, decode_body, decode_header, encode, keys
from gateway.bus.follower import Follower
from gateway.engine.replay import Entry, Proposal, Sequenced
from gateway.engine.types import ItemResult, Source, Status

EPOCH = "e"


def proposal(number: int, changes: int = 1) -> Proposal:
    entries = tuple(Entry(f"d{i}", 1, False, Source.VECTOR, 0, "{}", None, b"1234") for i in range(changes))
    return Proposal("o", number, entries, False, None, (ItemResult("d0", 1, Status.INSERTED),))


def message(first: int, last: int, term: int = 1, epoch: str = EPOCH) -> tuple[Header, memoryview]:
    body = msgspec.msgpack.encode((proposal(first, last - first + 1),))
    return decode_header(f"{epoch} {term} {first} {last}\n".encode() + body)


def following() -> Follower:
    follower = Follower(EPOCH, 1, 0)
    follower.hole = follower.stale = False
    return follower


def taken(follower: Follower) -> list[int]:
    return [batch.index_version for batch in follower.next()]


def test_what_comes_next_is_taken() -> None:
    follower = following()
    follower.take(*message(1, 3))
    follower.take(*message(4, 4))
    assert (taken(follower), follower.position, follower.hole) == ([3, 4], 4, False)


def test_what_comes_early_marks_a_hole_and_is_dropped() -> None:
    follower = following()
    follower.take(*message(2, 2))
    assert (taken(follower), follower.position, follower.hole) == ([], 0, True)


def test_what_comes_twice_is_passed_over() -> None:
    follower = following()
    for _ in range(2):
        follower.take(*message(1, 2))
    assert (taken(follower), follower.hole) == ([2], False)


def test_another_term_or_epoch_is_looked_into_first() -> None:
    for strange in (message(1, 1, term=2), message(1, 1, epoch="f")):
        follower = following()
        follower.take(*strange)
        assert (taken(follower), follower.stale) == ([], True)


def test_what_waits_is_bounded() -> None:
    follower = following()
    header, body = message(1, 1)
    room = followers.QUEUE_BYTES // len(body)
    follower.take_own(Sequenced(1, 1, (proposal(1),)), len(body) * (room - 1))
    follower.take_own(Sequenced(2, 2, (proposal(2),)), len(body) * 2)
    assert (follower.position, follower.hole) == (1, True)
    assert header.index_version == 1


def test_one_batch_of_any_size_is_taken() -> None:
    follower = following()
    follower.take_own(Sequenced(1, 1, (proposal(1),)), 2 * followers.QUEUE_BYTES)
    assert follower.position == 1


@given(st.permutations(range(1, 9)), st.lists(st.integers(1, 8), max_size=8))
def test_in_whatever_order_they_come_they_are_applied_in_theirs(order: list[int], again: list[int]) -> None:
    follower = following()
    for number in [*order, *again, *range(1, 9)]:
        follower.take(*message(number, number))
    assert taken(follower) == list(range(1, 9))
    follower.applied(8)
    assert not follower


def test_a_jump_leaves_what_waited_behind() -> None:
    follower = following()
    follower.take(*message(1, 1))
    follower.jump(5)
    assert (taken(follower), follower.position, follower.hole) == ([], 5, True)


def test_a_batch_comes_out_as_it_went_in() -> None:
    proposals = {0: proposal(7), 2: proposal(8, 2)}
    meta, body = encode([keys(["a", "a"], "e"), keys(["b"], None), keys(["c"], None)], proposals)
    writes = msgspec.msgpack.decode(meta)
    assert [write[0] for write in writes] == [1, 0, 2]
    assert [write[2:] for write in writes] == [["da", "ee"], ["db"], ["dc"]]
    assert sum(write[1] for write in writes) == len(body)
    header = Header(EPOCH, 1, 1, 3)
    framed = b"\xdd" + (2).to_bytes(4, "big") + body
    assert decode_body(header, memoryview(framed)).proposals == tuple(proposals.values())

from __future__ import annotations

import threading

from gateway.engine.turns import Turns


def test_searches_share() -> None:
    turns = Turns()
    inside = threading.Barrier(2, timeout=10)

    def search() -> None:
        with turns.search():
            inside.wait()

    other = threading.Thread(target=search)
    other.start()
    search()  # returns only if both are inside at once
    other.join()


def test_a_search_waits_for_the_writer() -> None:
    turns = Turns()
    order: list[str] = []

    def search() -> None:
        with turns.search():
            order.append("search")

    with turns.write():
        other = threading.Thread(target=search)
        other.start()
        while not turns.searches_waiting:
            pass
        order.append("write")
    other.join()
    assert order == ["write", "search"]


def test_neither_side_starves() -> None:
    """Both sides come round again and again while the other never pauses."""
    turns = Turns()
    stop = threading.Event()
    counts = {"search": 0, "write": 0}
    enough = threading.Semaphore(0)
    wanted = 200

    def loop(kind: str) -> None:
        hold = turns.search if kind == "search" else turns.write
        while not stop.is_set():
            with hold():
                counts[kind] += 1
            if counts[kind] == wanted:
                enough.release()

    threads = [threading.Thread(target=loop, args=(kind,)) for kind in ("search", "search", "write")]
    for thread in threads:
        thread.start()
    try:
        assert enough.acquire(timeout=30)
        assert enough.acquire(timeout=30)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_writers_never_overlap_with_anyone() -> None:
    turns = Turns()
    inside = {"search": 0, "write": 0}
    broken: list[str] = []

    def search() -> None:
        for _ in range(300):
            with turns.search():
                inside["search"] += 1
                if inside["write"]:
                    broken.append("a search beside a writer")
                inside["search"] -= 1

    def write() -> None:
        for _ in range(300):
            with turns.write():
                inside["write"] += 1
                if inside["write"] > 1:
                    broken.append("two writers")
                inside["write"] -= 1

    threads = [threading.Thread(target=body) for body in (search, search, write, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken

"""The demo and the Procfile, as a stranger starts them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from hotindex import Document, NotFound, Reconnected, Reset, Update
from hotindex.sync import Client as SyncClient
from hotindex.types import Change, Match, Recommendation, RecommendationUpdate

from gateway.demo.recommended import Recommended
from gateway.demo.watched import Watched
from tests.ports import free_port

ROOT = Path(__file__).parent.parent


def test_the_demo_ends_by_itself_with_everything_received() -> None:
    command = [sys.executable, "-m", "hotindex", "demo", "--seconds", "4"]
    ports = ["--ws-port", str(free_port()), "--http-port", str(free_port())]
    run = subprocess.run([*command, *ports], capture_output=True, text=True, timeout=55, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    summary = re.search(r"events +(\d+) sent, (\d+) acknowledged, (\d+) received in the room", run.stdout)
    assert summary is not None, run.stdout
    sent, acknowledged, received = map(int, summary.groups())
    assert sent == acknowledged == received > 400
    assert "loaded            31245 movies" in run.stdout
    assert re.search(r"sent → room +p50 [\d.]+ ms, p99 [\d.]+ ms", run.stdout)
    assert re.search(r"\((\d+) of \1 new vectors found", run.stdout)
    assert re.search(r'^watch "space adventure": \+ .+: Part 2 \(\d\w\w\), - .+$', run.stdout, re.MULTILINE)
    watch = re.search(r"^watch +(\d+) differences .+ those of an exact search$", run.stdout, re.MULTILINE)
    assert watch is not None, run.stdout
    assert int(watch[1]) > 0
    assert re.search(r"^recommended to user:3808: \d+ for .+: .*\+ .+$", run.stdout, re.MULTILINE)
    user = re.search(r"^recommended +(\d+) changes in the 5 for .+ are those of a search$", run.stdout, re.MULTILINE)
    assert user is not None, run.stdout
    assert int(user[1]) > 0
    assert re.search(rf"sent → watch +p50 .+ \(of {watch[1]} differences", run.stdout)


def test_a_watch_on_the_screen_marks_what_is_new_and_what_moved() -> None:
    watched = Watched("ships")
    watched.take(answer(1, "acdef"), 0.0)
    watched.take(answer(2, "abcde", added="b", removed="f"), 0.0)
    assert watched.marks == {"b": "+", "c": "↓", "d": "↓", "e": "↓"}
    assert watched.news == "+ B (2nd), - F"
    assert watched.differences == 1


def test_a_difference_is_measured_from_the_oldest_event_that_changed_the_list() -> None:
    """`f` was sent long before, too far off to be listed. It came in when `b` went, and that is what was told late."""
    watched = Watched("ships")
    watched.take(answer(1, "abcde"), 0.0)
    watched.acked(watched.sending(), "f", 2, 10.0)
    deleted = watched.sending()
    watched.take(answer(3, "acdef", added="f", removed="b"), 20.5)
    assert watched.told_s == [], "the acknowledgement is on its way"
    watched.acked(deleted, "b", 3, 20.0)
    assert watched.told_s == [0.5]


def test_a_users_list_on_the_screen_marks_what_came_last_and_after_which_rating() -> None:
    user = Recommended("ann", str.upper)
    assert user.take(listed("ab"))
    assert (user.news, user.changes) == ("A, B", 0)
    user.rating("x", 9)
    assert not user.take(listed("ba")), "the same movies"
    assert user.take(listed("cb"))
    assert (user.news, user.changes) == ("9 for X: + C, B", 1)
    assert not user.take(listed("bc"))
    assert user.news == "9 for X: B, + C", "the list as it is now"
    assert user.take(listed("cd"))
    assert (user.news, user.changes) == ("C, + D", 2), "others made it change"


def listed(ids: str) -> RecommendationUpdate:
    return RecommendationUpdate("ann", (), (), tuple(Recommendation(one, 0.5, None) for one in ids))


def answer(index_version: int, ids: str, added: str = "", removed: str = "") -> Change:
    """Return a change; an id is a letter, and `a` scores best."""
    results = tuple(Match(one, 1 / ord(one), {"name": one.upper()}) for one in ids)
    return Change(index_version, tuple(match for match in results if match.id in added), (), tuple(removed), results)


def test_honcho_runs_the_procfile(tmp_path: Path) -> None:
    """Redis and two gateways come up, share what is written, and go down together."""
    for name in ("Procfile", ".venv"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    if not (tmp_path / ".venv").exists():
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/hotindex").symlink_to(Path(sys.executable).parent / "hotindex")
    names = ("REDIS_PORT", "WS_PORT_ONE", "HTTP_PORT_ONE", "WS_PORT_TWO", "HTTP_PORT_TWO")
    ports = {name: free_port() for name in names}
    environment = {**os.environ, **{name: str(port) for name, port in ports.items()}}
    assert shutil.which("redis-server"), "make test installs it"
    command = [sys.executable, "-m", "honcho", "start"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as honcho:
        try:
            for name in ("HTTP_PORT_ONE", "HTTP_PORT_TWO"):
                url = f"http://127.0.0.1:{ports[name]}/readyz"
                wait_for(lambda url=url: urllib.request.urlopen(url).status == 200)
            one, two = (SyncClient(f"ws://127.0.0.1:{ports[name]}") for name in ("WS_PORT_ONE", "WS_PORT_TWO"))
            with one, two:
                one.upsert("things", [Document("a", vector=[1.0, 2.0])])
                wait_for(lambda: knows(two, "things"))
                # A node that has copied a collection closes the connections it had forwarded it to.
                updates = (one for one in two.subscribe("things", since=0) if not isinstance(one, Reconnected))
                assert [type(next(updates)) for _ in range(2)] == [Reset, Update]
                one.patch("things", "a", {"x": 1})
                update = next(updates)
                assert isinstance(update, Update)
                assert (update.document_id, update.metadata) == ("a", {"x": 1})
        finally:
            honcho.terminate()
            assert honcho.wait(20) in {0, 143, -15}


def knows(client: SyncClient, collection: str) -> bool:
    try:
        client.get(collection, "a")
    except NotFound:
        return False
    return True


def wait_for(condition: object) -> None:
    assert callable(condition)
    while True:
        try:
            if condition():
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.05)

"""`hotindex load`: what files hold, what is refused, and loads that are interrupted."""

from __future__ import annotations

import asyncio
import base64
import csv
import gzip
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hotindex import Backoff, Client, Conflict, ConnectionLost, Document, HotindexError
from hotindex.errors import from_message
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.exceptions import TyperException

from gateway.cli import app
from gateway.commands.http import ask
from gateway.commands.loading.formats import Chunk, Columns, Fault, Format, Line, Records, WrongColumns
from gateway.commands.loading.sending import GivenUp, Patience, Sender, in_order
from gateway.commands.loading.text import LINE_BYTES, Position, Text
from gateway.commands.process import GatewayProcess
from tests.ports import free_port

SLOW = ("--max-commands-per-s", "20")
"""A gateway that takes 20 commands of a connection at once and then 20 a second, so that a load can be met half-way."""

Gateways = Iterator[GatewayProcess]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateways:
    with GatewayProcess(tmp_path_factory.mktemp("load") / "data", ["--log-level", "error"]) as running:
        yield running


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Gateways:
    with GatewayProcess(tmp_path_factory.mktemp("slow") / "data", ["--log-level", "error", *SLOW]) as running:
        yield running


def command(gateway: GatewayProcess, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "hotindex", "load", "--url", gateway.ws, *map(str, arguments)]


def load(gateway: GatewayProcess, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(gateway, *arguments), capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL
    )


@contextmanager
def loading(gateway: GatewayProcess, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(gateway, *arguments), text=True, **pipes) as loader:  # type: ignore[call-overload]
        try:
            yield loader
        finally:
            loader.kill()


def documents(gateway: GatewayProcess, collection: str) -> dict[str, Any]:
    """Return the metadata of everything in a collection, by id."""
    found: dict[str, Any] = {}
    since, more = 0, True
    while more:
        page = ask(gateway.http, f"/v1/collections/{collection}/changes?since={since}&limit=1000")
        found |= {change["document_id"]: change["metadata"] for change in page["changes"]}
        since, more = page["index_version"], page["more"]
    return found


def index_version(gateway: GatewayProcess, collection: str) -> int:
    try:
        version: int = ask(gateway.http, f"/v1/collections/{collection}")["index_version"]
    except HotindexError:
        return 0
    return version


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


def write(path: Path, data: str | bytes) -> Path:
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def numbered(path: Path, count: int) -> Path:
    """Write a file of `count` documents with two numbers each as their vector."""
    return write(path, "".join(json.dumps({"id": f"d{i}", "vector": [1, i], "n": i}) + "\n" for i in range(count)))


def rejects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read(path: Path, form: Format, columns: Columns = Columns(), begin: Position = Position()) -> list[Line]:
    with Text(path) as text:
        records = Records(text, form, columns)
        while begin.offset_bytes and not records.skip(begin, 7):
            pass
        lines: list[Line] = []
        while chunk := records.chunk(3):
            lines += chunk.lines
        return lines


def contents(lines: Sequence[Line]) -> list[tuple[int, object]]:
    """Return numbers, and documents or the codes of faults."""
    return [(line.number, line.content.code if isinstance(line.content, Fault) else line.content) for line in lines]


def test_csv_cells_become_what_they_are_said_to_be(tmp_path: Path) -> None:
    packed = struct.pack("<2f", 0.5, -2)
    file = write(
        tmp_path / "a.csv",
        "\ufeffkey,title,year,rating,tags,content,vector\r\n"
        '1,"A ""quoted"", title",1994,8.5,Drama| War |,"two\r\nlines","[0.5, -2]"\r\n'
        f"2,,,,,,{base64.b64encode(packed).decode()}\r\n"
        "\r\n"
        '3,"é",-7,1e3,,x,\r\n',
    )
    columns = Columns("key", frozenset({"year", "rating"}), frozenset({"tags"}))
    first = {"title": 'A "quoted", title', "year": 1994, "rating": 8.5, "tags": ["Drama", "War"]}
    assert contents(read(file, "csv", columns)) == [
        (2, Document("1", packed, "two\r\nlines", first)),
        (4, Document("2", packed, None, {})),
        (6, Document("3", None, "x", {"title": "é", "year": -7, "rating": 1000.0})),
    ]


def test_json_fields_that_are_not_a_documents_own_are_metadata(tmp_path: Path) -> None:
    lines = [
        '{"id": "1", "name": "x", "content": "text", "if_version": 0}',
        "",
        '{"id": 2, "metadata": {"y": [1, {"z": null}]}, "name": "passed over", "vector": [1, 0]}',
    ]
    file = write(tmp_path / "a.jsonl.gz", "\ufeff" + "\n".join(lines))
    assert contents(read(file, "jsonl")) == [
        (1, Document("1", None, "text", {"name": "x"}, 0)),
        (3, Document("2", struct.pack("<2f", 1, 0), None, {"y": [1, {"z": None}]})),
    ]
    named = write(tmp_path / "b.jsonl", '{"id": 7, "key": "k"}')
    assert contents(read(named, "jsonl", Columns("key"))) == [(1, Document("k", None, None, {"id": 7}))]


def test_each_json_line_that_is_no_document_is_a_fault_of_its_own(tmp_path: Path) -> None:
    long = b'{"id": "' + b"x" * LINE_BYTES + b'"}'
    lines = [
        (b'{"id": "ok1", "x": 1}', None),
        (b"{broken", "invalid_message"),
        (b"[1]", "invalid_message"),
        (b'{"name": "no id"}', "invalid_argument"),
        (b'{"id": true}', "invalid_argument"),
        (b'{"id": "a\xff"}', "invalid_message"),
        (long, "too_large"),
        (b'{"id": "a", "vector": "%%"}', "invalid_vector"),
        (b'{"id": "a", "vector": [1, "x"]}', "invalid_vector"),
        (b'{"id": "a", "x": "\\ud800"}', "invalid_argument"),
        (b'{"id": "a", "x": 99999999999999999999}', "invalid_argument"),
        (b"[" * 100_000, "too_large"),
        (b'{"id": "ok2", "x": 1}', None),
    ]
    file = write(tmp_path / "a.jsonl", b"\n".join(line for line, _ in lines))
    found = read(file, "jsonl")
    assert [(line.number, line.content.code if isinstance(line.content, Fault) else None) for line in found] == [
        (number, code) for number, (_, code) in enumerate(lines, 1)
    ]
    assert [line.data.rstrip(b"\n") for line in found if line.number != 7] == [
        line for line, _ in lines if line != long
    ]


def test_csv_faults_cost_no_other_line(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.csv",
        b"id,name,n\n"  # 1
        b"a,x\n"  # 2: too few
        b"b,x,1,y\n"  # 3: too many
        b",x,1\n"  # 4: no id
        b"c,\xff,1\n"  # 5
        b"d,x,many\n"  # 6
        b'e,"open,1\n'  # 7: a quote that isn't closed, up to the one in line 9, after which text follows
        b"f,x,1\n"  # 8
        b'g,"y",2\n'  # 9
        b'h,"two\nlines",3\n'  # 10, 11
        b'i,5" disk,4\n'  # 12: a quote inside is a quote
        b"j,1_000,1_000\n"  # 13
        b'k,"open at the end,1\n'  # 14
        b"l,x,5",  # 15
    )
    assert contents(read(file, "csv", Columns(numbers=frozenset({"n"})))) == [
        (2, "invalid_message"),
        (3, "invalid_message"),
        (4, "invalid_argument"),
        (5, "invalid_message"),
        (6, "invalid_argument"),
        (7, "invalid_message"),
        (8, Document("f", None, None, {"name": "x", "n": 1})),
        (9, Document("g", None, None, {"name": "y", "n": 2})),
        (10, Document("h", None, None, {"name": "two\nlines", "n": 3})),
        (12, Document("i", None, None, {"name": '5" disk', "n": 4})),
        (13, "invalid_argument"),
        (14, "invalid_message"),
        (15, Document("l", None, None, {"name": "x", "n": 5})),
    ]


def test_a_quote_that_is_never_closed_costs_its_line_in_a_large_file_too(tmp_path: Path) -> None:
    rows = [f"{i},{'x' * 1000}\n" for i in range(2 * LINE_BYTES // 1000)]
    file = write(tmp_path / "a.csv", "id,name\n" + '0,"open\n' + "".join(rows) + f"1,{'y' * LINE_BYTES}\nlast,z\n")
    found = contents(read(file, "csv"))
    assert [(number, code) for number, code in found if isinstance(code, str)] == [
        (2, "too_large"),
        (len(rows) + 3, "too_large"),
    ]
    assert len(found) == len(rows) + 3
    assert found[-1] == (len(rows) + 4, Document("last", None, None, {"name": "z"}))


@pytest.mark.parametrize(
    ("header", "words"),
    [("", "no header"), ("a,b\n", "no column 'id'"), ("id,a,a\n", "'a' more than once"), ('id,"a\n', "can't be read")],
)
def test_a_wrong_header_is_named(tmp_path: Path, header: str, words: str) -> None:
    with pytest.raises(WrongColumns, match=words):
        read(write(tmp_path / "a.csv", header), "csv")


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=6)


@settings(max_examples=100)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS, st.sampled_from(['"', "\n", ',"\n', "x"])), max_size=12), zipped=st.booleans()
)
def test_a_load_can_go_on_after_any_chunk(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], zipped: bool
) -> None:
    """Cells come back as csv wrote them, and from every position what is read is the rest of what was read at once."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["id", "a", "b", "c"])
    writer.writerows((f"d{i}", *row) for i, row in enumerate(rows))
    file = write(tmp_path_factory.mktemp("csv") / ("a.csv.gz" if zipped else "a.csv"), buffer.getvalue())
    whole = read(file, "csv")
    expected = [{name: cell for name, cell in zip("abc", row, strict=True) if cell} for row in rows]
    assert [line.content.metadata for line in whole if isinstance(line.content, Document)] == expected
    with Text(file) as text:
        records = Records(text, "csv", Columns())
        done = 0
        while chunk := records.chunk(2):
            done += len(chunk.lines)
            assert read(file, "csv", begin=chunk.end) == whole[done:]


def test_an_incomplete_gzip_file_is_said_to_be(tmp_path: Path) -> None:
    file = numbered(tmp_path / "a.jsonl.gz", 1000)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(HotindexError, match=r"unreadable: .*a\.jsonl\.gz can't be read beyond line"):
        read(file, "jsonl")


async def test_commands_under_way_share_no_document_and_results_come_in_order() -> None:
    ids = [[0, 1], [2, 3], [3, 3], [4], [5], [6], [7], [0], [8], [8], [9]]
    chunks = [Chunk(tuple(Line(0, b"", Document(str(i))) for i in some), Position(n), 0) for n, some in enumerate(ids)]
    waiting, most = iter(chunks), 0
    under_way: list[set[int]] = []

    async def send(chunk: Chunk) -> int:
        nonlocal most
        mine = set(ids[chunk.end.line])
        assert all(mine.isdisjoint(others) for others in under_way)
        under_way.append(mine)
        most = max(most, len(under_way))
        while most < 2:
            await asyncio.sleep(0)  # the second shares nothing with the first, and comes while that is under way
        for _ in range(chunk.end.line % 3 * 5):
            await asyncio.sleep(0)
        under_way.remove(mine)
        return chunk.end.line

    async with aclosing(in_order(lambda: next(waiting, None), send)) as settled:
        assert [done async for _, done in settled] == list(range(len(ids)))
    assert 2 <= most <= 4


async def test_what_can_pass_is_waited_for_as_long_as_the_gateway_says() -> None:
    waited = Backoff(first_s=0, limit_s=0)
    patience = Patience(100, waited, lambda: 0.0)
    answers: list[HotindexError | str] = [
        from_message({"code": "overloaded", "message": "full", "retryable": True, "retry_after_s": 0.01}),
        from_message({"code": "storage_unavailable", "message": "disk", "retryable": True}),
        ConnectionLost("gone"),
        "done",
        from_message({"code": "conflict", "message": "version", "retryable": False, "version": 2}),
    ]

    async def attempt() -> str:
        answer = answers.pop(0)
        if isinstance(answer, HotindexError):
            raise answer
        return answer

    assert await patience.persist(attempt) == "done"
    assert patience.failing is None
    with pytest.raises(Conflict):
        await patience.persist(attempt)


async def test_patience_ends_where_nothing_succeeds_and_begins_anew_where_something_does() -> None:
    now_s = 0.0
    patience = Patience(10, Backoff(first_s=0, limit_s=0), lambda: now_s)

    async def fail() -> None:
        nonlocal now_s
        now_s += 4
        raise ConnectionLost(f"at {now_s:.0f} s")

    async def succeed() -> None:
        pass

    with pytest.raises(GivenUp, match=r"no progress for 12 s, the last error was connection_lost: at 12 s"):
        await patience.persist(fail)
    await patience.persist(succeed)
    with pytest.raises(GivenUp, match="at 24 s"):
        await patience.persist(fail)


async def test_a_line_with_if_version_that_is_sent_again_is_no_conflict(gateway: GatewayProcess) -> None:
    """Its acknowledgement may have been lost."""
    lines = tuple(Line(i, b"", Document(f"d{i}", [1.0, i], if_version=0)) for i in range(1, 4))
    async with Client(gateway.ws) as client:
        sender = Sender(client, "again", Patience(1, Backoff(), time.monotonic), "load")
        for _ in range(2):
            outcome = await sender.send(Chunk(lines, Position(3), 0))
            assert (outcome.statuses, outcome.rejected) == ({"inserted": 3}, [])


async def test_what_was_read_before_a_damaged_place_is_sent() -> None:
    chunks = iter([Chunk((Line(1, b"", Document("a")),), Position(1), 0)])

    def damaged() -> Chunk:
        for chunk in chunks:
            return chunk
        raise HotindexError("unreadable", "damaged", retryable=False)

    async def send(chunk: Chunk) -> int:
        return chunk.end.line

    settled = in_order(damaged, send)
    assert (await anext(settled))[1] == 1
    with pytest.raises(HotindexError, match="damaged"):
        await anext(settled)


def test_a_file_is_loaded_and_leaves_nothing_beside_it(gateway: GatewayProcess, tmp_path: Path) -> None:
    file = write(tmp_path / "films.csv.gz", 'id,name,year\n1,"A boat\non the ocean",1990\n2,A spaceship,2001\n')
    run = load(gateway, file, "-c", "csv", "--numbers", "year")
    assert (run.returncode, run.stderr) == (0, "")
    counts, last = run.stdout.splitlines()
    assert counts.startswith("2 inserted, 0 updated, 0 unchanged, 0 rejected; ")
    assert last == "2 documents loaded into csv"
    assert documents(gateway, "csv") == {
        "1": {"name": "A boat\non the ocean", "year": 1990},
        "2": {"name": "A spaceship", "year": 2001},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["films.csv.gz"]
    again = write(tmp_path / "films.csv.gz", 'id,name,year\n1,"A boat\non the ocean",1990\n2,A spaceship,2002\n3,x,1\n')
    assert load(gateway, again, "-c", "csv", "--numbers", "year").stdout.startswith(
        "1 inserted, 1 updated, 1 unchanged, 0 rejected; "
    )


def test_lines_that_are_refused_go_to_the_rejects_file_and_no_others(gateway: GatewayProcess, tmp_path: Path) -> None:
    """A command is refused whole; the lines at fault are found, and those of one id stay in their order around them."""
    lines: list[dict[str, Any]] = [{"id": f"d{i}", "vector": [1, i], "n": i} for i in range(20)]
    bad: dict[int, tuple[dict[str, Any], str]] = {
        3: ({"id": "d2", "vector": [1, 2, 3]}, "invalid_vector"),
        4: ({"id": "d2", "vector": [0, 0]}, "invalid_vector"),
        7: ({"id": "d6", "if_version": 5, "n": -1}, "conflict"),
        11: ({"id": "x" * 513, "vector": [1, 1]}, "invalid_argument"),
        12: ({"id": "fresh"}, "invalid_argument"),
        15: ({"id": "d5", "content": 7}, "invalid_message"),
        18: ({"id": "d5", "big": "x" * (1 << 20)}, "too_large"),
        19: ({"id": "d5", "metadata": {"x": float("nan")}}, "invalid_argument"),
    }
    for number, (line, _) in bad.items():
        lines[number - 1] = line
    lines += [{"id": "d0", "n": n} for n in range(100, 130)]
    for i, batch in enumerate((256, 7, 1)):
        file = write(tmp_path / f"{i}.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines) + "{broken\n")
        run = load(gateway, file, "-c", f"refused{i}", "--batch", str(batch))
        assert (run.returncode, run.stderr) == (3, "")
        told = rejects(tmp_path / f"{i}.jsonl.rejects.jsonl")
        assert [(one["line"], one["code"]) for one in told] == [
            *((number, code) for number, (_, code) in bad.items()),
            (51, "invalid_message"),
        ]
        assert [one["text"] for one in told[:-1]] == [json.dumps(line) for line, _ in bad.values()]
        assert told[0]["reason"] == "vector has 3 numbers; the collection has dimension 2"
        assert "9 rejected (" in run.stdout
        expected = {line["id"]: {"n": line["n"]} for i, line in enumerate(lines, 1) if i not in bad}
        assert documents(gateway, f"refused{i}") == expected


def test_a_rejects_file_elsewhere_and_an_old_one_replaced(gateway: GatewayProcess, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"id": "1", "vector": [1, 0]}\n{"id": ""}\n')
    elsewhere = tmp_path / "elsewhere.jsonl"
    assert load(gateway, file, "-c", "elsewhere", "--rejects", elsewhere).returncode == 3
    assert load(gateway, file, "-c", "elsewhere", "--rejects", elsewhere).returncode == 3
    assert [one["line"] for one in rejects(elsewhere)] == [2]
    numbered(file, 1)
    assert load(gateway, file, "-c", "elsewhere", "--rejects", elsewhere).returncode == 0
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.txt", (), "give --format"),
        ("a.jsonl", ("--numbers", "year"), "for CSV"),
        ("a.csv", ("--lists", "tags"), "no column 'tags'"),
        ("a.csv", ("--format", "xml"), "xml"),
        ("a.csv", ("--rejects", "{file}"), "is the file to load"),
        ("a.csv", ("--progress", "{file}/x"), "is no directory"),
        ("a.csv", ("--progress", "/"), "is a directory"),
        ("a.csv", ("--progress", "{file}.rejects.jsonl"), "can't be both"),
    ],
)
def test_what_cant_be_loaded_is_said_at_once(
    gateway: GatewayProcess, tmp_path: Path, name: str, options: tuple[str, ...], words: str
) -> None:
    file = write(tmp_path / name, "id,name\n1,x\n")
    told = [option.format(file=file) for option in options]
    with pytest.raises(TyperException) as caught:
        app(["load", str(file), "-c", "never", "--url", gateway.ws, *told], standalone_mode=False)
    assert words in caught.value.format_message()
    assert index_version(gateway, "never") == 0


def test_a_full_disk_is_told(gateway: GatewayProcess, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"id": "1", "vector": [1, 0]}\n{broken\n')
    run = load(gateway, file, "-c", "full", "--rejects", "/dev/full")
    assert (run.returncode, run.stderr) == (
        1,
        "hotindex: unwritable: /dev/full can't be written: No space left on device\n",
    )


def test_a_wrong_collection_ends_the_load_and_rejects_nothing(gateway: GatewayProcess, tmp_path: Path) -> None:
    run = load(gateway, numbered(tmp_path / "a.jsonl", 3), "-c", "no/name")
    assert run.returncode == 1
    assert "no valid name" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_gateway_that_limits_commands_gets_them_all_in_the_end(slow: GatewayProcess, tmp_path: Path) -> None:
    file = numbered(tmp_path / "a.jsonl", 35)
    run = load(slow, file, "-c", "limited", "--batch", "1")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("35 inserted, 0 updated, 0 unchanged, 0 rejected; ")
    assert documents(slow, "limited") == {f"d{i}": {"n": i} for i in range(35)}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_killed_load_goes_on_where_it_was(slow: GatewayProcess, tmp_path: Path, name: str) -> None:
    """With every third line a reject, and one of them written after the last progress was: none is lost, none doubled."""
    collection, progress = name.replace(".", "-"), tmp_path / f"{name}.progress.json"
    lines = [json.dumps({"id": f"d{i}", "vector": [1, i], "n": i} if i % 3 else {"id": i / 2}) for i in range(3000)]
    file = write(tmp_path / name, "\n".join(lines))
    with loading(slow, file, "-c", collection, "--batch", "6") as loader:
        until(progress.exists)
        loader.kill()
        loader.wait()
    saved = json.loads(progress.read_text())
    assert 0 < saved["position"]["line"] < 3000
    assert saved["epoch"] == ask(slow.http, f"/v1/collections/{collection}")["epoch"]
    rejected = tmp_path / f"{name}.rejects.jsonl"
    with rejected.open("a") as more:
        more.write('{"line": 9999, "code": "cut o')
    run = load(slow, file, "-c", collection)
    line = saved["position"]["line"]
    assert run.returncode == 3
    assert f"continuing after line {line}, with {line - line // 3} documents loaded" in run.stderr
    assert run.stdout.splitlines()[-1] == f"2000 documents loaded into {collection}"
    assert documents(slow, collection) == {f"d{i}": {"n": i} for i in range(3000) if i % 3}
    assert [one["line"] for one in rejects(rejected)] == list(range(1, 3001, 3))
    assert not progress.exists()


def interrupted(slow: GatewayProcess, file: Path, collection: str) -> dict[str, Any]:
    """Begin a load of single documents and press Ctrl-C: at index_version 5 the first of at most 4 under way is settled."""
    with loading(slow, file, "-c", collection, "--batch", "1") as loader:
        until(lambda: index_version(slow, collection) >= 5)
        loader.send_signal(signal.SIGINT)
        _, told = loader.communicate()
    assert loader.returncode == 130
    saved: dict[str, Any] = json.loads(file.with_name(f"{file.name}.progress.json").read_text())
    line = saved["position"]["line"]
    assert 0 < line < 1000
    assert told == f"hotindex: interrupted after line {line}; the same command goes on there\n"
    return saved


def test_ctrl_c_leaves_its_progress_and_restart_ignores_it(slow: GatewayProcess, tmp_path: Path) -> None:
    file = numbered(tmp_path / "a.jsonl", 1000)
    done = interrupted(slow, file, "stopped")["position"]["line"]
    assert (tmp_path / "a.jsonl.progress.json").exists()
    with loading(slow, file, "-c", "stopped", "--restart", "--batch", "1"):
        # Gone before anything else is done: a crash now mustn't have the next load continue what was begun anew.
        until(lambda: not (tmp_path / "a.jsonl.progress.json").exists())
    run = load(slow, file, "-c", "stopped", "--restart")
    assert (run.returncode, run.stderr) == (0, "")
    counted = {name: int(number) for number, name in (word.split() for word in run.stdout.split(";")[0].split(", "))}
    assert counted["unchanged"] >= done
    assert counted["inserted"] + counted["unchanged"] == 1000


def test_a_load_begins_anew_where_its_progress_is_of_something_else(slow: GatewayProcess, tmp_path: Path) -> None:
    file, progress = numbered(tmp_path / "a.jsonl", 1000), tmp_path / "a.jsonl.progress.json"
    interrupted(slow, file, "first")
    kept = progress.read_bytes()

    def reason(*options: str) -> str:
        run = load(slow, file, *options)
        assert (run.returncode, run.stdout.splitlines()[-1]) == (0, f"1000 documents loaded into {options[1]}")
        (line,) = run.stderr.splitlines()
        progress.write_bytes(kept)
        assert line.startswith("hotindex: beginning anew, for ")
        return line.partition(" of no use: ")[2]

    assert reason("-c", "second") == "it was of a load into 'first'"
    assert reason("-c", "first", "--id", "n") == "lines are to be read in another way"
    ask(slow.http, "/v1/collections/first", "DELETE")
    assert reason("-c", "first").startswith("'first' is not the collection it was")
    os.utime(file, (1, 1))
    assert reason("-c", "first") == "the file has changed"
    progress.write_bytes(b"{")
    run = load(slow, file, "-c", "first")
    assert run.returncode == 2
    assert "is not replaced: it is damaged, or no progress file" in run.stderr
    assert progress.read_bytes() == b"{"


def test_a_collection_dropped_meanwhile_is_no_success(slow: GatewayProcess, tmp_path: Path) -> None:
    file = numbered(tmp_path / "a.jsonl", 100)
    with loading(slow, file, "-c", "dropped", "--batch", "1") as loader:
        until(lambda: index_version(slow, "dropped") >= 5)
        ask(slow.http, "/v1/collections/dropped", "DELETE")
        _, told = loader.communicate(timeout=20)
    assert loader.returncode == 1
    assert "load the file again" in told
    run = load(slow, file, "-c", "dropped")
    assert "is not the collection it was" in run.stderr
    assert documents(slow, "dropped") == {f"d{i}": {"n": i} for i in range(100)}


def test_a_load_outlives_a_crash_of_the_gateway_or_gives_up_and_can_go_on(tmp_path: Path) -> None:
    ports = ["--ws-port", str(free_port()), "--http-port", str(free_port())]
    flags = ["--log-level", "error", *ports]
    file, progress = numbered(tmp_path / "a.jsonl", 1000), tmp_path / "a.jsonl.progress.json"
    impatient_progress = tmp_path / "impatient.json"
    with GatewayProcess(tmp_path / "data", [*flags, *SLOW]) as first:
        impatient = ("-c", "given-up", "--give-up", "1", "--progress", impatient_progress)
        small = ("--batch", "5")
        with loading(first, file, "-c", "kept", *small) as patient, loading(first, file, *impatient, *small) as other:
            until(lambda: progress.exists() and impatient_progress.exists())
            first.kill()
            _, told = other.communicate(timeout=20)
            assert other.returncode == 1
            assert told.startswith("hotindex: given_up: no progress for ")
            with GatewayProcess(tmp_path / "data", flags) as second:
                out, told = patient.communicate(timeout=30)
                assert (patient.returncode, told) == (0, "")
                assert out.splitlines()[-1] == "1000 documents loaded into kept"
                run = load(second, file, *impatient)
                assert run.returncode == 0
                assert "continuing after line" in run.stderr
                expected = {f"d{i}": {"n": i} for i in range(1000)}
                assert documents(second, "kept") == expected
                assert documents(second, "given-up") == expected
    assert not progress.exists()
    assert not impatient_progress.exists()

"""The HTTP routes, and the ones that existing producers use, with nothing but an HTTP library."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgpack
import pytest

from gateway.app import Gateway
from tests.conftest import JsonSocket, StartGateway, json_socket

HERE = "/v1/collections/m"
NDJSON = {"Content-Type": "application/x-ndjson"}


class Http:
    """An HTTP client for the gateway."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        """Return status and decoded body."""
        if body is not None:
            options["json"] = body
        async with self.session.request(method, path, **options) as response:
            text = await response.text()
            return response.status, json.loads(text) if response.content_type == "application/json" else text


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[Http]:
    async with aiohttp.ClientSession(gateway.http) as session:
        yield Http(session)


async def test_a_collection_is_made_described_listed_and_dropped(http: Http) -> None:
    status, made = await http("PUT", HERE, {"dimension": 2, "metric": "l2", "m": 8})
    assert status == 201
    assert made.pop("epoch")
    assert made == {
        "name": "m",
        "dimension": 2,
        "metric": "l2",
        "model": None,
        "m": 8,
        "ef_construction": 100,
        "ef_search": 64,
        "hot_rows": None,
        "indexes": [],
        "text_fields": ["name", "description", "category", "tags"],
        "separator": " | ",
        "index_version": 0,
        "documents": 0,
    }
    assert (await http("PUT", HERE, {"dimension": 2}))[0] == 200, "the same again is fine"
    assert (await http("PUT", HERE, {"separator": "; "}))[0] == 409
    status, error = await http("PUT", HERE, {"dimension": 3})
    assert (status, error["code"]) == (409, "conflict")
    await http("PUT", "/v1/collections/texts", {"model": "static-minilm-256"})
    _, listed = await http("GET", "/v1/collections")
    assert [(c["name"], c["dimension"], c["model"]) for c in listed["collections"]] == [
        ("m", 2, None),
        ("texts", 256, "static-minilm-256"),
    ]
    assert (await http("DELETE", HERE)) == (200, {"collection": "m", "status": "dropped"})
    assert (await http("GET", HERE))[0] == 404


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "dimension"),
        ({"dimension": 0}, "dimension is 0"),
        ({"dimension": 2, "metric": "manhattan"}, "metric is 'manhattan'"),
        ({"model": "unknown"}, "'unknown'"),
        ({"model": "static-minilm-256", "dimension": 3}, "makes 256"),
        ({"dimension": 2, "m": 1}, "m is 1"),
        ({"dimension": 2, "colour": "red"}, "colour"),
        ({"dimension": "two"}, "dimension is 'two'"),
    ],
)
async def test_a_collection_that_can_not_be(http: Http, body: dict[str, Any], words: str) -> None:
    status, error = await http("PUT", HERE, body)
    assert status == 400
    assert words in error["message"]
    assert (await http("GET", HERE))[0] == 404


async def test_a_dropped_collection_comes_back_empty_with_a_new_epoch(http: Http) -> None:
    _, first = await http("PUT", HERE, {"dimension": 2})
    await http("POST", f"{HERE}/documents", {"id": "a", "vector": [1, 0]})
    await http("DELETE", HERE)
    _, second = await http("PUT", HERE, {"dimension": 3})
    assert first["epoch"] != second["epoch"]
    assert (second["documents"], second["index_version"], second["dimension"]) == (0, 0, 3)


async def test_documents(http: Http) -> None:
    documents = [{"id": "a/b c", "vector": [1, 0], "metadata": {"x": 1}}, {"id": "é", "vector": [0, 1]}]
    status, ack = await http("POST", f"{HERE}/documents", {"documents": documents, "atomic": True})
    assert (status, ack["type"], ack["index_version"]) == (200, "ack", 2)
    status, found = await http("GET", f"{HERE}/documents/a%2Fb%20c?include=vector,content")
    assert (status, found["metadata"], found["vector"]) == (200, {"x": 1}, [1.0, 0.0])
    status, ack = await http("PATCH", f"{HERE}/documents/a%2Fb%20c", {"changes": {"y": 2}, "if_version": 1})
    assert (status, ack["results"][0]["version"]) == (200, 2)
    status, error = await http("PATCH", f"{HERE}/documents/a%2Fb%20c", {"changes": {"y": 3}, "if_version": 1})
    assert (status, error["code"], error["version"]) == (409, "conflict", 2)
    status, results = await http("POST", f"{HERE}/search", {"vector": [1, 0.1], "k": 1, "filter": {"y": 2}})
    assert (status, [hit["id"] for hit in results["results"]]) == (200, ["a/b c"])
    assert (await http("DELETE", f"{HERE}/documents/%C3%A9"))[1]["results"][0]["status"] == "deleted"
    assert (await http("GET", f"{HERE}/documents/%C3%A9"))[0] == 404
    assert (await http("GET", f"{HERE}/documents/a%2Fb%20c?include=everything"))[0] == 400


async def test_a_deletion_is_idempotent_by_its_event_id(http: Http) -> None:
    await http("POST", f"{HERE}/documents", {"id": "a", "vector": [1, 2]})
    statuses = [(await http("DELETE", f"{HERE}/documents/a?event_id=e"))[1]["results"][0]["status"] for _ in range(2)]
    assert statuses == ["deleted", "duplicate"]


async def test_messagepack_in_and_out(http: Http) -> None:
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    body = msgpack.packb({"id": "a", "vector": b"\x00\x00\x80?\x00\x00\x00@"})
    async with http.session.post(f"{HERE}/documents", data=body, headers=headers) as response:
        assert response.content_type == "application/msgpack"
        assert msgpack.unpackb(await response.read())["type"] == "ack"
    assert (await http("GET", f"{HERE}/documents/a?include=vector"))[1]["vector"] == [1.0, 2.0]


async def test_ndjson_streams_in_and_each_line_stands_alone(http: Http) -> None:
    fed = asyncio.Event()

    async def lines() -> AsyncIterator[bytes]:
        for i in range(3000):
            yield json.dumps({"id": f"d{i}", "vector": [1, i]}).encode() + b"\n"
        while (await http("GET", f"{HERE}/documents/d0"))[0] != 200:
            await asyncio.sleep(0.01)
        fed.set()  # the first lines were committed before the last were sent
        yield b'\n{"id":"bad","vector":[1,2,3]}\nno json\n{"id":"zero","vector":[0,0]}\n{"id":"d1","vector":[1,1]}\n'
        yield b'{"id":"no newline",'
        yield b'"vector":[5,5]}'

    async with http.session.post(f"{HERE}/documents", data=lines(), headers=NDJSON) as response:
        assert response.status == 200
        loaded = await response.json()
    assert fed.is_set()
    told = loaded.pop("errors")
    errors = [(error["line"], error["code"]) for error in told]
    assert not any(error["retryable"] for error in told)
    assert errors == [(3002, "invalid_vector"), (3003, "invalid_message"), (3004, "invalid_vector")]
    assert loaded == {
        "collection": "m",
        "lines": 3006,
        "inserted": 3001,
        "updated": 0,
        "unchanged": 1,
        "failed": 3,
        "index_version": 3001,
    }


async def test_an_endless_line_is_refused_and_the_next_ones_read(http: Http) -> None:
    await http("PUT", HERE, {"dimension": 2})

    async def lines() -> AsyncIterator[bytes]:
        yield b'{"id":"'
        for _ in range(80):
            yield b"x" * 100_000
        yield b'"}\n{"id":"a","vector":[1,2]}\n'

    async with http.session.post(f"{HERE}/documents", data=lines(), headers=NDJSON) as response:
        loaded = await response.json()
    assert (loaded["inserted"], loaded["failed"], loaded["errors"][0]["code"]) == (1, 1, "too_large")


async def test_changes_page_by_page(http: Http) -> None:
    for i in range(7):
        await http("POST", f"{HERE}/documents", {"id": f"d{i % 4}", "vector": [1, i]})
    await http("DELETE", f"{HERE}/documents/d3")
    since, seen = 0, []
    while True:
        _, page = await http("GET", f"{HERE}/changes?since={since}&limit=2")
        assert page["recovered"]
        seen += [(event["document_id"], event["index_version"]) for event in page["changes"]]
        since = page["index_version"]
        if not page["more"]:
            break
    assert seen == [("d0", 5), ("d1", 6), ("d2", 7), ("d3", 8)]
    _, page = await http("GET", f"{HERE}/changes?since=1")
    assert [event["event_type"] for event in page["changes"]] == ["update", "insert", "insert", "delete"]
    assert (await http("GET", f"{HERE}/changes?since=99"))[1]["recovered"] is False
    assert (await http("GET", f"{HERE}/changes?since=x"))[1]["code"] == "invalid_message"
    assert (await http("GET", f"{HERE}/changes?limit=0"))[1]["code"] == "invalid_argument"


async def test_rest_producers_are_understood(http: Http) -> None:
    vectors = [{"id": "a", "vector": [1, 0], "metadata": {"price": 3}}, {"id": "b", "vector": [0, 1]}]
    status, ack = await http("POST", "/v1/upsert", {"vectors": vectors})
    assert (status, ack["collection"], len(ack["results"])) == (200, "default", 2)
    assert await http("GET", "/v1/documents/a") == (200, {"price": 3})
    assert (await http("GET", "/v1/documents/nobody"))[0] == 404
    _, ack = await http("POST", "/v1/delete", {"ids": ["a", "nobody"]})
    assert [item["status"] for item in ack["results"]] == ["deleted", "missing"]
    assert (await http("GET", "/v1/documents/a"))[0] == 404


async def test_what_is_written_over_http_comes_to_the_room(http: Http, gateway: Gateway) -> None:
    await http("PUT", HERE, {"dimension": 2})
    async with json_socket(gateway.ws) as socket:
        await socket.ask(action="subscribe", collection="m")
        await http("POST", f"{HERE}/documents", {"id": "a", "vector": [1, 0]})
        assert (await socket.events(1))[0]["document_id"] == "a"


async def test_health_readiness_metrics(http: Http) -> None:
    assert await http("GET", "/healthz") == (200, "ok\n")
    assert await http("GET", "/readyz") == (200, "ready\n")
    await http("POST", f"{HERE}/documents", {"id": "a", "vector": [1, 0]})
    _, text = await http("GET", "/metrics")
    assert 'hotindex_documents{collection="m"} 1.0' in text
    assert 'hotindex_changes_total{collection="m"} 1.0' in text
    assert "hotindex_commit_seconds_bucket" in text


async def test_snapshot_on_request(http: Http) -> None:
    await http("POST", f"{HERE}/documents", {"id": "a", "vector": [1, 0]})
    assert await http("POST", f"{HERE}/snapshot") == (200, {"collection": "m", "index_version": 1})
    assert (await http("POST", "/v1/collections/none/snapshot"))[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "data", "status", "code"),
    [
        ("GET", "/nowhere", None, 404, "not_found"),
        ("POST", "/v1/collections", None, 405, "unknown_action"),
        ("GET", "/v1/collections/..%2Fx", None, 400, "invalid_argument"),
        ("PUT", f"/v1/collections/{'x' * 200}", b'{"dimension":2}', 400, "invalid_argument"),
        ("POST", f"{HERE}/documents", b"{broken", 400, "invalid_message"),
        ("POST", f"{HERE}/documents", b"\xff", 400, "invalid_message"),
        ("POST", f"{HERE}/documents", b"", 400, "invalid_message"),
        ("POST", f"{HERE}/documents", b'{"id":"a","vector":[0,0]}', 400, "invalid_vector"),
        ("POST", f"{HERE}/search", b'{"vector":[1,0]}', 404, "not_found"),
        ("POST", "/v1/upsert", b'{"vectors":[{"vector":[1]}]}', 400, "invalid_message"),
        ("POST", "/v1/upsert", b'{"vectors":[{"id":"a","vector":["x"]}]}', 400, "invalid_vector"),
        ("POST", "/v1/delete", b"{}", 400, "invalid_argument"),
    ],
)
async def test_errors_are_the_contracts_with_their_status(
    http: Http, method: str, path: str, data: bytes | None, status: int, code: str
) -> None:
    from yarl import URL

    url = URL(path, encoded=True)
    async with http.session.request(method, url, data=data) as response:
        error = await response.json()
    assert (response.status, error["type"], error["code"]) == (status, "error", code)


async def test_a_body_over_the_limit(start_gateway: StartGateway) -> None:
    async with start_gateway(max_message_bytes=2000) as gateway, aiohttp.ClientSession(gateway.http) as session:
        body = {"id": "a", "vector": [1.0] * 3000}
        status, error = await Http(session)("POST", f"{HERE}/documents", body)
        assert (status, error["code"]) == (413, "too_large")


async def test_a_failing_disk_is_told_as_not_ready(start_gateway: StartGateway, tmp_path: Any) -> None:
    import sqlite3

    async with start_gateway() as gateway, aiohttp.ClientSession(gateway.http) as session:
        http = Http(session)
        await http("POST", f"{HERE}/documents", {"id": "a", "vector": [1, 0]})
        blocker = sqlite3.connect(tmp_path / "data/collections/m/store.db", isolation_level=None)
        blocker.execute("CREATE TRIGGER full BEFORE UPDATE ON meta BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        status, error = await http("POST", f"{HERE}/documents", {"id": "b", "vector": [1, 0]})
        assert (status, error["code"], error["retryable"]) == (503, "storage_unavailable", True)
        status, text = await http("GET", "/readyz")
        assert status == 503
        assert "disk full" in text
        assert (await http("POST", f"{HERE}/search", {"vector": [1, 0]}))[0] == 200, "reads go on"
        blocker.execute("DROP TRIGGER full")
        blocker.close()
        assert (await http("GET", "/readyz"))[0] == 200, "nobody has to write first"
        assert (await http("POST", f"{HERE}/documents", {"id": "b", "vector": [1, 0]}))[0] == 200


async def test_the_default_collection_is_a_setting(start_gateway: StartGateway) -> None:
    async with start_gateway(default_collection="shop") as gateway, json_socket(gateway.ws) as socket:
        socket_typed: JsonSocket = socket
        ack = await socket_typed.ask(type="product_created", product_id="p", data={"name": "Shoe"})
        assert ack["collection"] == "shop"


async def test_producers_over_rest_may_name_the_collection_in_the_query(http: Http) -> None:
    vectors = {"vectors": [{"id": "a", "vector": [1, 0]}]}
    assert (await http("POST", "/v1/upsert?collection=m", vectors))[1]["collection"] == "m"
    status, ack = await http("POST", "/v1/delete?collection=m", {"ids": ["a"]})
    assert (ack["collection"], ack["results"][0]["status"]) == ("m", "deleted")
    status, error = await http("POST", "/v1/delete?collection=m", {"ids": ["a"], "collection": "n"})
    assert (status, error["field"]) == (400, "collection")


async def test_commands_over_http_are_counted(http: Http) -> None:
    await http("POST", f"{HERE}/documents", {"id": "a", "vector": [1, 0]})
    await http("POST", f"{HERE}/search", {"vector": [1]})
    _, text = await http("GET", "/metrics")
    assert 'hotindex_commands_total{command="upsert",outcome="ok"} 1.0' in text
    assert 'hotindex_commands_total{command="search",outcome="invalid_vector"} 1.0' in text


async def test_a_page_of_changes_is_bounded_in_bytes(http: Http) -> None:
    for i in range(12):
        await http("POST", f"{HERE}/documents", {"id": f"d{i}", "vector": [1, i], "content": "x" * 900_000})
    seen, since, pages = [], 0, 0
    while True:
        _, page = await http("GET", f"{HERE}/changes?since={since}")
        seen += [event["document_id"] for event in page["changes"]]
        since, pages = page["index_version"], pages + 1
        if not page["more"]:
            break
    assert seen == [f"d{i}" for i in range(12)]
    assert pages > 1


async def test_patches_do_not_grow_a_document_beyond_its_limit(http: Http) -> None:
    await http("POST", f"{HERE}/documents", {"id": "a", "vector": [1, 0], "metadata": {"a": "x" * 600_000}})
    status, error = await http("PATCH", f"{HERE}/documents/a", {"changes": {"b": "x" * 600_000}})
    assert (status, error["code"]) == (413, "too_large")
    assert (await http("GET", f"{HERE}/documents/a"))[1]["version"] == 1


async def test_an_answer_is_bounded_in_bytes(http: Http) -> None:
    for i in range(70):
        await http("POST", f"{HERE}/documents", {"id": f"d{i}", "vector": [1, i], "content": "x" * 1_000_000})
    status, error = await http("POST", f"{HERE}/search", {"vector": [1, 0], "k": 70})
    assert (status, error["code"], error["field"]) == (413, "too_large", "k")
    assert (await http("POST", f"{HERE}/search", {"vector": [1, 0], "k": 10}))[0] == 200


async def test_settings_of_a_collection(http: Http) -> None:
    made = {"dimension": 2, "hot_rows": 16, "indexes": ["year", "maker.name"]}
    status, info = await http("PUT", HERE, made)
    assert (status, info["hot_rows"], info["indexes"]) == (201, 16, ["year", "maker.name"])
    assert (await http("PUT", HERE, {"dimension": 2}))[0] == 200
    status, error = await http("PUT", HERE, {"dimension": 2, "indexes": ["month"]})
    assert (status, error["code"]) == (409, "conflict")
    assert "indexes ('year', 'maker.name')" in error["message"]
    for wrong in ({"hot_rows": -1}, {"indexes": ["a..b"]}, {"indexes": ["x"] * 17}):
        assert (await http("PUT", f"{HERE}2", {"dimension": 2, **wrong}))[0] == 400

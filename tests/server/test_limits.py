"""What is refused or slowed down, and told so, where more comes than the gateway takes."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from gateway.app import Gateway
from gateway.node import exchange, peers
from gateway.server import requests
from tests.conftest import StartGateway, json_socket
from tests.server.test_http import HERE, NDJSON
from tests.server.watchers import fill, watcher

DOCUMENTS = f"{HERE}/documents"


async def post(session: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, int | None, dict[str, Any]]:
    """Return status, Retry-After and answer."""
    async with session.post(path, json=body) as response:
        after = response.headers.get("Retry-After")
        return response.status, None if after is None else int(after), await response.json()


async def stored(gateway: Gateway) -> set[str]:
    """Return the ids that a subscriber to all of "m" gets."""
    async with json_socket(gateway.ws) as socket:
        head = (await socket.ask(action="subscribe", collection="m", since=0, batch=True))["index_version"]
        await socket.receive()
        ids: set[str] = set()
        last = 0
        while last < head:
            (event, *others) = await socket.events(1)
            ids |= {one["document_id"] for one in (event, *others)}
            last = [event, *others][-1]["index_version"]
        return ids


# Writes a second.


async def test_writes_over_the_rate_are_refused_and_told_when_to_come_again(start_gateway: StartGateway) -> None:
    async with (
        start_gateway(max_writes_per_s=20) as gateway,
        json_socket(gateway.ws) as socket,
        aiohttp.ClientSession(gateway.http) as http,
    ):
        many = [{"id": f"d{i}", "vector": [1, i]} for i in range(40)]
        assert (await socket.ask(action="upsert", collection="m", documents=many))["type"] == "ack"
        refused = await socket.ask(action="upsert", collection="m", documents=many, ref=1)
        assert (refused["code"], refused["retryable"], refused["ref"]) == ("rate_limited", True, 1)
        assert 1 < refused["retry_after_s"] <= 2
        status, after, answer = await post(
            http, f"{HERE}/transaction", {"operations": [{"action": "delete", "id": "d0"}] * 9}
        )
        assert (status, after, answer["code"]) == (429, 2, "rate_limited")
        assert (await socket.ask(action="get", collection="m", id="d0"))["version"] == 1, "reads are not limited"
        assert (await socket.ask(action="upsert", collection="n", documents=many))["type"] == "ack", "each has its own"
        await asyncio.sleep(refused["retry_after_s"])
        ack = await socket.ask(action="delete", collection="m", ids=[f"d{i}" for i in range(20)])
        assert ack["results"][0]["status"] == "deleted"


async def test_a_batch_larger_than_the_bucket_waits_for_it_to_be_full(start_gateway: StartGateway) -> None:
    async with start_gateway(max_writes_per_s=10) as gateway, json_socket(gateway.ws) as socket:
        batch = [{"id": f"d{i}", "vector": [1, i]} for i in range(50)]
        assert (await socket.ask(action="upsert", collection="m", documents=batch))["type"] == "ack"
        refused = await socket.ask(action="delete", collection="m", id="d0")
        assert 3 < refused["retry_after_s"] <= 4.1


async def test_what_is_wrong_costs_nothing(start_gateway: StartGateway) -> None:
    async with start_gateway(max_writes_per_s=0.01) as gateway, json_socket(gateway.ws) as socket:
        for _ in range(5):
            assert (await socket.ask(action="upsert", collection="m", id="a", vector=[0, 0]))[
                "code"
            ] == "invalid_vector"
        assert (await socket.ask(action="upsert", collection="m", id="a", vector=[1, 0]))["type"] == "ack"
        assert (await socket.ask(action="upsert", collection="m", id="a", vector=[1, 0]))["code"] == "rate_limited"


async def test_the_bucket_of_a_dropped_collection_goes_with_it(start_gateway: StartGateway) -> None:
    async with (
        start_gateway(max_writes_per_s=0.01) as gateway,
        json_socket(gateway.ws) as socket,
        aiohttp.ClientSession(gateway.http) as http,
    ):
        for _ in range(3):
            assert (await socket.ask(action="upsert", collection="m", id="a", vector=[1, 0]))["type"] == "ack"
            assert (await socket.ask(action="delete", collection="m", id="a"))["code"] == "rate_limited"
            await http.delete(HERE)


async def test_ndjson_is_read_as_slowly_as_it_may_be_written(start_gateway: StartGateway) -> None:
    async with start_gateway(max_writes_per_s=100) as gateway, aiohttp.ClientSession(gateway.http) as http:
        body = b"".join(json.dumps({"id": f"d{i}", "vector": [1, i]}).encode() + b"\n" for i in range(250))
        began = time.monotonic()
        async with http.post(DOCUMENTS, data=body, headers=NDJSON) as response:
            loaded = await response.json()
        assert (loaded["inserted"], loaded["failed"]) == (250, 0)
        assert 1.4 < time.monotonic() - began < 10


async def test_ndjson_over_the_rate_is_not_even_read(start_gateway: StartGateway) -> None:
    async with (
        start_gateway(max_writes_per_s=1) as gateway,
        begun(gateway, "Content-Type: application/x-ndjson", "Content-Length: 100000000") as request,
    ):
        # More than the kernel holds, so that most of it stays here.
        line = json.dumps({"id": "a", "vector": [1, 0], "content": "x" * 999_000}).encode() + b"\n"
        request.send(line * 40)
        before = -1
        while request.unsent_bytes != before:
            before = request.unsent_bytes
            await asyncio.sleep(0.3)
        assert request.unsent_bytes > 25 * len(line)
        request.abort()


# The queue.


async def test_http_writes_that_find_the_queue_full_are_applied_or_refused_at_once(start_gateway: StartGateway) -> None:
    """Half of them are in the queue when the others come."""
    async with (
        start_gateway(queue_documents=8) as gateway,
        aiohttp.ClientSession(gateway.http, connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        await post(http, DOCUMENTS, {"id": "first", "vector": [1, 1]})

        async def write(number: int) -> tuple[str, int, int | None, str]:
            document_id = f"d{number}"
            if number % 3:
                path, body = DOCUMENTS, {"id": document_id, "vector": [1, number]}
            else:
                operation = {"action": "upsert", "id": document_id, "vector": [1, number]}
                path, body = f"{HERE}/transaction", {"operations": [operation]}
            status, after, answer = await post(http, path, body)
            return document_id, status, after, answer.get("code", "ack")

        ended = await asyncio.gather(*(write(number) for number in range(400)))
        outcomes = {(status, after, code) for _, status, after, code in ended}
        assert outcomes == {(200, None, "ack"), (503, 1, "overloaded")}
        applied = {document_id for document_id, status, _, _ in ended if status == 200}
        assert await stored(gateway) == applied | {"first"}


async def test_a_websocket_and_ndjson_wait_where_the_queue_is_full(start_gateway: StartGateway) -> None:
    async with (
        start_gateway(queue_documents=2) as gateway,
        json_socket(gateway.ws) as socket,
        aiohttp.ClientSession(gateway.http) as http,
    ):
        body = b"".join(json.dumps({"id": f"n{i}", "vector": [1, i]}).encode() + b"\n" for i in range(300))
        loading = asyncio.create_task(http.post(DOCUMENTS, data=body, headers=NDJSON))
        for i in range(300):
            await socket.send({"action": "upsert", "collection": "m", "id": f"w{i}", "vector": [1, i]})
        assert {(await socket.receive())["type"] for _ in range(300)} == {"ack"}
        async with await loading as response:
            assert (await response.json())["inserted"] == 300


# Bodies.


class SlowRequest:
    """A request whose head is sent, and of whose body only what one sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.send = writer.write
        self.abort = writer.transport.abort
        self._reader = reader
        self._writer = writer

    @property
    def unsent_bytes(self) -> int:
        return self._writer.transport.get_write_buffer_size()

    async def taken(self) -> None:
        """Wait until the gateway waits for the body; the request has to `Expect` that."""
        assert await self._reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"

    async def answer(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Return status, headers and body."""
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        body = await self._reader.readexactly(int(headers["Content-Length"]))
        return int(first.split()[1]), headers, json.loads(body)


@asynccontextmanager
async def begun(gateway: Gateway, *headers: str) -> AsyncIterator[SlowRequest]:
    address = urlsplit(gateway.http)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write("\r\n".join((f"POST {DOCUMENTS} HTTP/1.1", f"Host: {address.netloc}", *headers, "", "")).encode())
    try:
        yield SlowRequest(reader, writer)
    finally:
        writer.close()


@pytest.mark.parametrize("header", ["Content-Length: 60000", "Transfer-Encoding: chunked"])
async def test_bodies_are_bounded_all_together_and_refused_unread(start_gateway: StartGateway, header: str) -> None:
    async with (
        start_gateway(max_http_bytes=100_000, max_message_bytes=80_000) as gateway,
        aiohttp.ClientSession(gateway.http) as http,
    ):
        assert (await post(http, DOCUMENTS, {"id": "a", "vector": [1, 0]}))[0] == 200
        async with begun(gateway, "Content-Length: 60000", "Expect: 100-continue") as slow:
            await slow.taken()
            async with begun(gateway, header) as another:
                status, headers, answer = await another.answer()
            assert (status, headers["Retry-After"], answer["code"]) == (503, "1", "overloaded")
            assert answer["retryable"]
            assert (await post(http, DOCUMENTS, {"id": "b", "vector": [1, 0]}))[0] == 200, (
                "there is room for small ones"
            )
            assert (await http.get(f"{DOCUMENTS}/b")).status == 200
            body = json.dumps({"id": "slow", "vector": [1, 0], "content": "x" * 50_000}).encode().ljust(60_000)
            slow.send(body)
            assert (await slow.answer())[0] == 200
        async with begun(gateway, header) as another:
            another.send(b"ea60\r\n%b\r\n0\r\n\r\n" % body if "chunked" in header else body)
            assert (await another.answer())[0] == 200, "what was held is given back"


async def test_another_node_is_refused_in_the_terms_of_nodes(start_gateway: StartGateway) -> None:
    async with (
        start_gateway(max_http_bytes=100_000) as gateway,
        aiohttp.ClientSession(gateway.http) as http,
        begun(gateway, "Content-Length: 60000", "Expect: 100-continue") as slow,
    ):
        await slow.taken()
        async with http.post("/v1/peer/m/commit", data=b"x" * 50_000) as response:
            assert response.status == peers.REFUSED
            failure = exchange.decode_failure(await response.read())
        assert (failure.code, failure.retry_after_s) == ("overloaded", 1.0)
        slow.send(b"x" * 60_000)
        assert (await slow.answer())[0] == 400


async def test_what_a_broken_request_held_is_given_back(start_gateway: StartGateway) -> None:
    async with (
        start_gateway(max_http_bytes=100_000) as gateway,
        aiohttp.ClientSession(gateway.http) as http,
    ):
        async with begun(gateway, "Content-Length: 60000", "Expect: 100-continue") as slow:
            await slow.taken()
        body = {"id": "a", "vector": [1, 0], "content": "x" * 60_000}
        while (await post(http, DOCUMENTS, body))[0] != 200:
            await asyncio.sleep(0.01)


async def test_a_body_over_the_limit_of_one_is_refused_unread(start_gateway: StartGateway) -> None:
    async with (
        start_gateway(max_message_bytes=2000) as gateway,
        begun(gateway, "Content-Length: 2001") as request,
        aiohttp.ClientSession(gateway.http) as http,
    ):
        status, _, answer = await request.answer()
        assert (status, answer["code"]) == (413, "too_large")
        request.send(b"x" * 2001)
        assert (await post(http, DOCUMENTS, {"id": "a", "vector": [1, 0]}))[0] == 200


async def test_a_body_larger_than_the_bound_of_all_is_let_in_alone(start_gateway: StartGateway) -> None:
    async with start_gateway(max_http_bytes=1024) as gateway, aiohttp.ClientSession(gateway.http) as http:
        for i in range(3):
            body = {"id": f"d{i}", "vector": [1, 0], "content": "x" * 5000}
            assert (await post(http, DOCUMENTS, body))[0] == 200


async def test_a_stream_of_ndjson_counts_little(start_gateway: StartGateway) -> None:
    """Two of them at once, each far longer than the bound."""
    async with start_gateway(max_http_bytes=600_000) as gateway, aiohttp.ClientSession(gateway.http) as http:

        async def load(name: str) -> int:
            line = json.dumps({"id": name, "vector": [1, 0], "content": "x" * 100_000}).encode() + b"\n"

            async def lines() -> AsyncIterator[bytes]:
                for _ in range(30):
                    yield line

            async with http.post(DOCUMENTS, data=lines(), headers=NDJSON) as response:
                loaded = await response.json()
                return int(loaded["inserted"] + loaded["unchanged"])

        assert [*await asyncio.gather(load("a"), load("b"))] == [30, 30]
        async with (
            begun(gateway, "Content-Length: 550000", "Expect: 100-continue") as slow,
            http.post(f"{HERE}/search", data=b'{"vector":[1,0]}'.ljust(100_000), headers=NDJSON) as response,
        ):
            await slow.taken()
            assert response.status == 503, "where no stream is read, the type makes no difference"


async def test_a_body_that_does_not_come_is_given_up(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_BODY_S", 0.2)
    async with (
        start_gateway(max_http_bytes=100_000) as gateway,
        begun(gateway, "Content-Length: 90000") as request,
        aiohttp.ClientSession(gateway.http) as http,
    ):
        status, _, answer = await request.answer()
        assert (status, answer["code"]) == (400, "invalid_message")
        request.send(b"x" * 90_000)
        body = {"id": "a", "vector": [1, 0], "content": "x" * 50_000}
        assert (await post(http, DOCUMENTS, body))[0] == 200


async def test_a_compressed_body_counts_as_the_largest_it_may_become(start_gateway: StartGateway) -> None:
    """Sixty of 15 KB, each 15 MB when unpacked, were let in at once."""
    body = gzip.compress(b'{"id":"a","vector":[1,2]}')
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with (
        start_gateway(max_http_bytes=1 << 20, max_message_bytes=1 << 20) as gateway,
        aiohttp.ClientSession(gateway.http) as session,
    ):
        host, port = gateway.http.removeprefix("http://").split(":")
        _, first = await asyncio.open_connection(host, int(port))
        first.write(b"POST /v1/collections/c/documents HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        while True:
            async with session.post("/v1/collections/c/documents", data=body, headers=headers) as answer:
                if answer.status == 503:
                    assert answer.headers["Retry-After"]
                    break
        first.close()
        while True:
            async with session.post("/v1/collections/c/documents", data=body, headers=headers) as answer:
                if answer.status == 200:
                    break


async def test_the_watches_of_a_connection_are_limited(start_gateway: StartGateway) -> None:
    async with start_gateway(max_watches=2) as gateway, json_socket(gateway.ws) as socket, watcher(gateway) as client:
        await fill(socket)
        first = await client.watch(vector=[1, 0])
        assert (await client.ask(action="watch", collection="m", vector=[1]))["code"] == "invalid_vector"
        await client.watch(vector=[1, 0])
        refused = await client.ask(action="watch", collection="m", vector=[1, 0])
        assert refused["code"] == "invalid_argument"
        assert "the limit is 2" in refused["message"]
        await client.ask(action="unwatch", watch_id=first)
        await client.watch(vector=[1, 0])

"""A service that fails, over real HTTP: tries, pauses, giving up and the circuit. Pauses take no time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from bench.provider import Behaviour, Provider, faults, ok, running
from gateway.embed import circuit, pace
from gateway.embed.presets import resolve
from gateway.embed.service import Service, pause_for
from gateway.errors import EmbeddingUnavailable
from tests.embed.support import DIMENSION, Time, assert_vectors, service

TEXTS = ["one", "two"]
DOWN = faults.status(503)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with running(DIMENSION) as started:
        yield started


async def refused(model: Service) -> EmbeddingUnavailable:
    with pytest.raises(EmbeddingUnavailable) as raised:
        await model.embed(TEXTS)
    return raised.value


PASSING = {
    "408": faults.status(408),
    "409": faults.status(409),
    "424": faults.status(424),
    "425": faults.status(425),
    "429": faults.status(429),
    "500": faults.status(500),
    "503": faults.status(503),
    "cut": faults.cut,
    "wrong count": faults.wrong_count,
    "wrong indexes": faults.wrong_indexes,
    "not finite": faults.not_finite,
    "giant": faults.giant(1 << 20),
    "no JSON": faults.raw(b"<html>hello</html>"),
    "no list": faults.raw(b'{"data": null}'),
    "a half of JSON": faults.raw(b'{"data": [{"embedding": [1.0,'),
    "null in a vector": faults.raw(b'{"data": [{"embedding": [null]}, {"embedding": [1]}]}'),
    "no base64": faults.raw(b'{"data": [{"embedding": "!"}, {"embedding": "!"}]}'),
    "half a float": faults.raw(b'{"data": [{"embedding": "AAA="}, {"embedding": "AAA="}]}'),
    "no UTF-8": faults.raw(b'{"data": "\xff"}'),
}


@pytest.mark.parametrize("encoding", ["base64", "float"])
@pytest.mark.parametrize("fault", PASSING)
async def test_what_passes_is_tried_again(provider: Provider, fault: str, encoding: str) -> None:
    time = Time()
    provider.script = [PASSING[fault], PASSING[fault]]
    async with service(provider, time, encoding=encoding) as model:
        assert_vectors(await model.embed(TEXTS), TEXTS)
        assert (model.usage.calls, model.usage.failed_calls, model.usage.texts) == (3, 2, 2)
    first_s, second_s = time.pauses_s
    assert pace.BACKOFF_FIRST_S / 2 <= first_s <= pace.BACKOFF_FIRST_S
    assert pace.BACKOFF_FIRST_S <= second_s <= 2 * pace.BACKOFF_FIRST_S


@pytest.mark.parametrize("fault", [faults.never, faults.dripping(0.005, 10.0)], ids=["never answers", "drips"])
async def test_a_request_has_a_time_limit_to_its_last_byte(provider: Provider, fault: Behaviour) -> None:
    provider.script = [fault]
    async with service(provider, timeout_s=0.1) as model:
        assert_vectors(await model.embed(TEXTS), TEXTS)
        assert model.usage.failed_calls >= 1


async def test_a_slow_answer_within_the_limit_is_taken(provider: Provider) -> None:
    provider.script = [faults.dripping(0.001, 0.05)]
    async with service(provider) as model:
        assert_vectors(await model.embed(TEXTS), TEXTS)
        assert model.usage.calls == 1


async def test_a_service_that_is_not_there(provider: Provider) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with service(provider, url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1") as model:
            error = await refused(model)
    assert "can't be connected to" in error.message
    assert error.retryable


async def test_it_gives_up_after_its_time_in_all(provider: Provider) -> None:
    time = Time()
    provider.otherwise = DOWN
    async with service(provider, time, give_up_s=20.0, circuit_reset_s=1000.0) as model:
        error = await refused(model)
    assert "503" in error.message
    assert 10 < sum(time.pauses_s) <= 20
    assert max(time.pauses_s) <= pace.BACKOFF_LONGEST_S


TOLD = {
    "Retry-After": ({"Retry-After": "3"}, 3.0),
    "a fraction": ({"Retry-After": "0.25"}, 0.25),
    "a date": ({"Retry-After": "Tue, 14 Nov 2023 22:13:27 GMT"}, 7.0),
    "milliseconds": ({"retry-after-ms": "1500", "Retry-After": "9"}, 1.5),
    "no requests left": ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6s"}, 6.0),
    "no tokens left": ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
}


@pytest.mark.parametrize("headers", TOLD)
async def test_it_waits_as_long_as_it_is_told(provider: Provider, headers: str) -> None:
    time = Time()
    told, pause_s = TOLD[headers]
    provider.script = [faults.status(429, told)]
    async with service(provider, time) as model:
        assert_vectors(await model.embed(TEXTS), TEXTS)
    assert time.pauses_s == [pytest.approx(pause_s)]


@pytest.mark.parametrize(
    "text", ["-1", "0", "nan", "-inf", "soon", "", "Thu, 01 Jan 1970 00:00:00 GMT", "9" * 400 + "x"]
)
async def test_what_makes_no_sense_is_not_told(provider: Provider, text: str) -> None:
    time = Time()
    provider.script = [faults.status(429, {"Retry-After": text})]
    async with service(provider, time) as model:
        assert_vectors(await model.embed(TEXTS), TEXTS)
    (pause_s,) = time.pauses_s
    assert pace.BACKOFF_FIRST_S / 2 <= pause_s <= pace.BACKOFF_FIRST_S


@pytest.mark.parametrize("text", ["999999", "1e400", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_wait_beyond_its_time_is_passed_on_at_once(provider: Provider, text: str) -> None:
    time = Time()
    provider.script = [faults.status(429, {"Retry-After": text})]
    async with service(provider, time) as model:
        error = await refused(model)
        assert error.retry_after_s == pace.LONGEST_S
        again = await refused(model)
        assert again.retry_after_s == pytest.approx(pace.LONGEST_S)
        assert len(provider.requests) == 1, "the other call is held back, too"
        time.now_s += pace.LONGEST_S
        assert_vectors(await model.embed(TEXTS), TEXTS)
    assert time.pauses_s == []


async def test_no_call_goes_before_the_time_one_was_told(provider: Provider) -> None:
    time = Time()
    exhausted = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2s"}
    provider.script = [
        faults.ok_with(exhausted),
        faults.ok_with({"x-ratelimit-remaining-tokens": "7", "Retry-After": "9"}),
    ]
    async with service(provider, time) as model:
        for _ in range(3):
            assert_vectors(await model.embed(TEXTS), TEXTS)
    assert time.pauses_s == [2.0]


async def test_an_outage_opens_the_circuit_and_a_probe_closes_it(provider: Provider) -> None:
    time = Time()
    provider.otherwise = DOWN
    with capture_logs() as logs:
        async with service(provider, time, give_up_s=100.0) as model:
            error = await refused(model)
            calls = len(provider.requests)
            assert calls >= circuit.FAILURES
            assert error.retry_after_s == 5.0
            time.now_s += 1.0
            assert (await refused(model)).retry_after_s == 4.0
            assert len(provider.requests) == calls, "nothing is asked while it is open"

            time.now_s += 4.0
            longer_s = (await refused(model)).retry_after_s
            assert longer_s is not None
            assert 5.0 < longer_s <= 10.0
            assert len(provider.requests) == calls + 1, "a probe has one try"

            provider.otherwise = ok
            time.now_s += longer_s
            for _ in range(2):
                assert_vectors(await model.embed(TEXTS), TEXTS)
    events = [(entry["event"], entry["log_level"]) for entry in logs]
    assert events == [("embedding service is out of reach", "warning"), ("embedding service is back", "info")]


async def test_a_refusal_of_the_settings_opens_the_circuit(provider: Provider) -> None:
    provider.otherwise = faults.status(404)
    async with service(provider) as model:
        assert (await refused(model)).retry_after_s == 5.0
        assert "404" in (await refused(model)).message
    assert len(provider.requests) == 1


async def test_refused_texts_are_no_failures(provider: Provider) -> None:
    provider.otherwise = faults.refusing("one")
    time = Time()
    async with service(provider, time) as model:
        for _ in range(2 * circuit.FAILURES):
            time.now_s += 10.0
            _, vector = await model.embed(TEXTS)
            assert_vectors([vector], ["two"])


async def test_one_probe_goes_while_the_others_are_refused(provider: Provider) -> None:
    time = Time()
    provider.script = [faults.status(404)]
    answers = asyncio.Event()
    provider.otherwise = faults.waiting(answers, ok)
    async with service(provider, time) as model, asyncio.TaskGroup() as group:
        await refused(model)
        time.now_s += 5.0
        probe = group.create_task(model.embed(TEXTS))
        while len(provider.requests) < 2:
            await asyncio.sleep(0)
        assert (await refused(model)).retry_after_s == 5.0
        answers.set()
        assert_vectors(await probe, TEXTS)
        assert_vectors(await model.embed(TEXTS), TEXTS)


async def test_a_probe_that_is_cancelled_makes_way_for_another(provider: Provider) -> None:
    time = Time()
    provider.script = [faults.status(404), faults.never]
    async with service(provider, time) as model:
        await refused(model)
        time.now_s += 5.0
        probe = asyncio.create_task(model.embed(TEXTS))
        while len(provider.requests) < 2:
            await asyncio.sleep(0)
        probe.cancel()
        with suppress(asyncio.CancelledError):
            await probe
        assert (await refused(model)).retry_after_s == 5.0
        time.now_s += 5.0
        assert_vectors(await model.embed(TEXTS), TEXTS)


async def test_a_probe_that_is_told_to_wait_is_no_failure(provider: Provider) -> None:
    time = Time()
    provider.script = [faults.status(404), faults.status(429, {"Retry-After": "2"})]
    async with service(provider, time) as model:
        for _ in range(2):
            assert (await refused(model)).retry_after_s == 5.0
            time.now_s += 5.0
        assert_vectors(await model.embed(TEXTS), TEXTS)


class Waiting(Time):
    """Pauses last until they are interrupted."""

    async def pause(self, seconds: float, interrupted: asyncio.Event) -> None:
        self.pauses_s.append(seconds)
        await interrupted.wait()


async def test_an_open_circuit_ends_the_pauses_of_other_calls(provider: Provider) -> None:
    time = Waiting()
    provider.script = [DOWN, DOWN, DOWN, faults.status(403)]
    async with service(provider, time) as model, asyncio.TaskGroup() as group:
        calls = [group.create_task(refused(model)) for _ in range(3)]
        while len(time.pauses_s) < 3:
            await asyncio.sleep(0)
        await refused(model)
        for call in calls:
            error = await call
            assert "403" in error.message
            assert error.retry_after_s == 5.0
    assert len(provider.requests) == 4


async def test_limits_that_last_open_the_circuit_and_one_alone_does_not(provider: Provider) -> None:
    time = Time()
    provider.otherwise = faults.status(429)
    async with service(provider, time, give_up_s=1.0) as model:
        for _ in range(circuit.FAILURES):
            error = await refused(model)
            time.now_s += 3.0
        assert error.retry_after_s == 5.0
        calls = len(provider.requests)
        assert "429" in (await refused(model)).message
        assert len(provider.requests) == calls

    async with service(provider, time, give_up_s=0.01) as model:
        for _ in range(3 * circuit.FAILURES):
            assert (await refused(model)).retry_after_s
            time.now_s += 1.0


async def test_pauses_take_their_time_and_end_when_they_are_interrupted() -> None:
    interrupted = asyncio.Event()
    await pause_for(0.001, interrupted)
    interrupted.set()
    await pause_for(1e6, interrupted)


async def test_without_a_clock_given_it_runs_by_the_real_one(provider: Provider) -> None:
    provider.script = [faults.status(429, {"Retry-After": "0.01"})]
    model = Service(resolve("m", {"url": provider.url, "model": "small", "dimension": DIMENSION}))
    assert_vectors(await model.embed(TEXTS), TEXTS)
    await model.close()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_fails_there_is_never_a_wrong_vector(seed: int) -> None:
    """Half of all requests fail, in any of the ways there are; who is refused comes again when it is told to."""
    time = Time()
    async with (
        running(DIMENSION, choose=faults.failing(0.5, 0.0, 0.01, seed)) as provider,
        service(provider, time, encoding=("base64", "float", "none")[seed]) as model,
    ):
        done = 0
        while done < 40:
            texts = [f"text {done}.{number}" for number in range(1 + done % 4)]
            try:
                assert_vectors(await model.embed(texts), texts)
                done += 1
            except EmbeddingUnavailable as error:
                time.now_s += error.retry_after_s or 1.0
        assert model.usage.failed_calls > 10
        assert model.usage.texts == sum(1 + number % 4 for number in range(40))

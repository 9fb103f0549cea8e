"""What a service answers, over real HTTP: vectors, and texts and settings that it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from bench.provider import Behaviour, Provider, faults, ok, running
from gateway.embed.model import Model
from gateway.errors import EmbeddingUnavailable, InvalidArgument
from tests.embed.support import DIMENSION, Time, assert_vectors, service

TEXTS = ["one", "two", "drei", "fünf"]


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with running(DIMENSION) as started:
        yield started


@pytest.mark.parametrize("encoding", ["base64", "float", "none"])
async def test_it_asks_for_what_the_settings_say(provider: Provider, encoding: str) -> None:
    async with service(provider, encoding=encoding, send_dimensions=True) as model:
        as_protocol: Model = model
        assert_vectors(await as_protocol.embed(TEXTS), TEXTS)
        assert (model.name, model.identity, model.dimension) == ("m", "small@8", DIMENSION)
    (asked,) = provider.requests
    wanted = {"model": "small", "input": TEXTS, "dimensions": DIMENSION}
    assert asked.body == (wanted if encoding == "none" else {**wanted, "encoding_format": encoding})
    assert "authorization" not in asked.headers


async def test_nothing_is_asked_for_no_texts(provider: Provider) -> None:
    async with service(provider) as model:
        assert await model.embed([]) == []
    assert provider.requests == []


@pytest.mark.parametrize("encoding", ["base64", "float"])
@pytest.mark.parametrize("behaviour", [faults.shuffled, faults.without_indexes, faults.other_encoding])
async def test_answers_in_other_forms_are_understood(provider: Provider, encoding: str, behaviour: Behaviour) -> None:
    provider.script = [behaviour]
    async with service(provider, encoding=encoding) as model:
        assert_vectors(await model.embed(TEXTS), TEXTS)
    assert len(provider.requests) == 1


async def test_a_zero_vector_is_an_error_of_its_text(provider: Provider) -> None:
    provider.script = [faults.zero]
    async with service(provider) as model:
        none, *others = await model.embed(TEXTS)
    assert isinstance(none, InvalidArgument)
    assert none.field == "content"
    assert "'one'" in none.message
    assert_vectors(others, TEXTS[1:])


async def test_a_wrong_dimension_is_not_asked_for_again(provider: Provider) -> None:
    provider.otherwise = faults.wrong_dimension
    async with service(provider) as model:
        with pytest.raises(EmbeddingUnavailable) as raised:
            await model.embed(TEXTS)
    assert "'small'" in raised.value.message
    assert "dimension 9" in raised.value.message
    assert "models.m.dimension says 8" in raised.value.message
    assert len(provider.requests) == 1


async def test_a_redirect_is_not_followed(provider: Provider) -> None:
    async with running(DIMENSION) as other:
        provider.script = [faults.redirecting(f"{other.url}/embeddings")]
        async with service(provider) as model:
            with pytest.raises(EmbeddingUnavailable, match=r"redirects to .*models\.m\.url"):
                await model.embed(TEXTS)
        assert other.requests == []


async def test_proxies_of_the_environment_are_passed_over(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with service(provider) as model:
        assert_vectors(await model.embed(TEXTS), TEXTS)


@pytest.mark.parametrize("code", [400, 413, 422])
async def test_a_batch_that_is_too_large_is_halved_and_stays_so(provider: Provider, code: int) -> None:
    texts = [f"text {number}" for number in range(20)]
    provider.otherwise = faults.at_most(6, code)
    async with service(provider, batch_texts=20) as model:
        assert model.batch.texts == 20
        assert_vectors(await model.embed(texts), texts)
        assert model.batch.texts == 5
        assert [len(asked) for asked in provider.texts] == [20, 10, 5, 5, 10, 5, 5]
        assert (model.usage.calls, model.usage.failed_calls, model.usage.texts) == (7, 3, 20)


async def test_the_limit_grows_back(provider: Provider) -> None:
    provider.script = [faults.at_most(2)]
    async with service(provider, batch_texts=4) as model:
        await model.embed(TEXTS)
        assert model.batch.texts == 2
        for _ in range(200):
            await model.embed(["a"])
        assert model.batch.texts == 4


async def test_a_refused_text_is_found_and_the_others_have_vectors(provider: Provider) -> None:
    texts = [f"text {number}" for number in range(16)]
    texts[11] = "BAD text"
    provider.otherwise = faults.refusing("BAD")
    async with service(provider) as model:
        outcomes = await model.embed(texts)
        refused = outcomes.pop(11)
        assert isinstance(refused, InvalidArgument)
        assert refused.field == "content"
        assert "BAD text" in refused.message
        assert "a text has BAD" in refused.message
        assert_vectors(outcomes, texts[:11] + texts[12:])
        assert model.batch.texts == 64, "it was not the size"


async def test_a_service_that_refuses_every_text_is_not_asked_for_each(provider: Provider) -> None:
    provider.otherwise = faults.status(400, words="unknown parameter: dimensions")
    async with service(provider) as model:
        with pytest.raises(EmbeddingUnavailable, match=r"refuses every text.*unknown parameter: dimensions"):
            await model.embed([f"text {number}" for number in range(64)])
    assert len(provider.requests) < 16


async def test_refused_texts_at_a_batch_s_start_do_not_take_the_others_with_them(provider: Provider) -> None:
    texts = [f"BAD {number}" for number in range(5)] + ["good", "better", "best"]
    provider.otherwise = faults.refusing("BAD")
    async with service(provider) as model:
        outcomes = await model.embed(texts)
    assert all(isinstance(outcome, InvalidArgument) for outcome in outcomes[:5])
    assert_vectors(outcomes[5:], texts[5:])


@pytest.mark.parametrize("code", [401, 403])
async def test_a_refused_key_is_told_with_its_source_and_not_shown(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret-1234567890")
    provider.otherwise = faults.echoing_key(code)
    with capture_logs() as logs:
        async with service(provider, key_env="SOME_KEY") as model:
            with pytest.raises(EmbeddingUnavailable) as raised:
                await model.embed(TEXTS)
            shown = f"{raised.value.message} {raised.value!r} {model!r} {vars(model)} {logs}"
    assert f"refused the key ({code})" in raised.value.message
    assert "'SOME_KEY'" in raised.value.message
    assert "models.m.key_env" in raised.value.message
    assert "secret" not in shown
    assert len(provider.requests) == 1
    assert provider.requests[0].headers["authorization"] == "Bearer sk-secret-1234567890"


@pytest.mark.parametrize("code", [400, 404, 418, 500])
async def test_a_key_that_is_sent_back_is_not_shown(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret-1234567890")
    provider.otherwise = faults.echoing_key(code)
    async with service(provider, key_env="SOME_KEY", give_up_s=0.1) as model:
        try:
            told = str(await model.embed(["one"]))
        except EmbeddingUnavailable as error:
            told = error.message
    assert "Incorrect API key provided" in told
    assert "secret" not in told


async def test_a_service_that_asks_for_a_key_where_none_is_set(provider: Provider) -> None:
    provider.otherwise = faults.status(401)
    async with service(provider) as model:
        with pytest.raises(EmbeddingUnavailable, match=r"asks for a key \(401\): set models\.m\.key_env"):
            await model.embed(TEXTS)


async def test_a_key_that_was_changed_is_read_again(provider: Provider, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old\n")
    provider.script = [ok, faults.status(401)]
    async with service(provider, key_file=str(file)) as model:
        await model.embed(TEXTS)
        file.write_text("new\n")
        assert_vectors(await model.embed(TEXTS), TEXTS)
    assert [asked.headers["authorization"] for asked in provider.requests] == ["Bearer old", "Bearer old", "Bearer new"]


async def test_a_missing_key_is_told_and_nothing_is_asked(provider: Provider) -> None:
    async with service(provider, key_env="NO_SUCH_KEY") as model:
        with pytest.raises(EmbeddingUnavailable, match=r"'NO_SUCH_KEY' \(setting models\.m\.key_env\) has no key"):
            await model.embed(TEXTS)
    assert provider.requests == []


async def test_a_missing_model_is_told_with_its_settings(provider: Provider) -> None:
    provider.otherwise = faults.status(404, words="model 'small' not found, try pulling it first")
    async with service(provider) as model:
        with pytest.raises(EmbeddingUnavailable) as raised:
            await model.embed(TEXTS)
    for words in (provider.url, "models.m.model", "models.m.url", "try pulling it first"):
        assert words in raised.value.message
    assert len(provider.requests) == 1


async def test_usage_is_what_the_service_counts_and_else_an_estimate(provider: Provider) -> None:
    usage: dict[str, Any] = {"prompt_tokens": 3, "total_tokens": 3}
    rows = [[1.0] + [0.0] * (DIMENSION - 1)] * 2
    async with service(provider) as model:
        for told in (usage, {"prompt_tokens": 5}, None, {"total_tokens": "many"}):
            provider.script = [faults.vectors_of(rows, told)]
            await model.embed(["abcdef", "äö"])
        assert model.usage.tokens == 3 + 5 + 3 + 3
        assert (model.usage.calls, model.usage.texts, model.usage.text_bytes) == (4, 8, 40)


async def test_calls_overlap(provider: Provider) -> None:
    together = asyncio.Event()
    provider.otherwise = faults.waiting(together, ok)
    async with service(provider, Time(), concurrency=4) as model, asyncio.TaskGroup() as group:
        calls = [group.create_task(model.embed([f"text {number}"])) for number in range(4)]
        while len(provider.requests) < 4:
            await asyncio.sleep(0)
        together.set()
        for number, call in enumerate(calls):
            assert_vectors(await call, [f"text {number}"])
    assert provider.most_at_once == 4


async def test_vectors_have_unit_length_whatever_their_size(provider: Provider) -> None:
    rows = [[1e300] * DIMENSION, [1e-300] * DIMENSION, [3.0, 4.0] + [0.0] * (DIMENSION - 2)]
    provider.script = [faults.vectors_of(rows, None)]
    async with service(provider) as model:
        for outcome in await model.embed(["large", "small", "plain"]):
            assert isinstance(outcome, np.ndarray)
            assert abs(float(np.linalg.norm(outcome)) - 1) < 1e-6

"""Guessing ahead on the real engine: faster where it guesses right, and otherwise the same server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import validate
from test_openvino_server import CAPITALS, Eventually, Running, say, start, stop, wait_ready

pytestmark = pytest.mark.acceptance

COUNTED = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 2, 3, 4,"


@pytest.fixture(scope="module")
def server(openvino_python: str, smollm2_gguf: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("engine")
    running = start(openvino_python, smollm2_gguf, folder, speculative_tokens=5, prefix_cache=False)
    yield wait_ready(running)
    stop(running)


@pytest.mark.parametrize("country", CAPITALS)
def test_a_known_answer_is_given(server: Running, country: str) -> None:
    answer = server.client.chat.completions.create(
        model="smollm2", messages=say(f"What is the capital of {country}?"), temperature=0, max_tokens=20
    )
    assert CAPITALS[country] in (answer.choices[0].message.content or "")


def test_a_text_that_repeats_its_prompt_takes_fewer_steps_than_tokens(server: Running) -> None:
    before = server.metrics()
    answer = server.client.completions.create(model="smollm2", prompt=COUNTED, max_tokens=36, temperature=0)
    after = server.metrics()
    assert answer.choices[0].text.startswith(" 5, 6, 7, 8, 9")
    assert answer.usage is not None and answer.usage.completion_tokens == 36
    assert after["steps_total"] - before["steps_total"] < 24
    assert after["generation_tokens_total"] - before["generation_tokens_total"] == 36


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 7}])
def test_a_stream_says_what_the_whole_answer_says_and_stops_at_its_limit(
    server: Running, sampling: dict[str, Any]
) -> None:
    wanted: dict[str, Any] = {"model": "smollm2", "prompt": COUNTED, "max_tokens": 21, **sampling}
    whole = server.client.completions.create(**wanted)
    chunks = list(server.client.completions.create(**wanted, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 21)


def test_the_stop_text_never_appears_though_it_was_guessed(server: Running) -> None:
    answer = server.client.completions.create(
        model="smollm2", prompt=COUNTED, max_tokens=60, temperature=0, stop=["9, 10"]
    )
    assert "9, 10" not in answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"


def test_an_answer_follows_its_json_schema(server: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = server.client.chat.completions.create(
        model="smollm2",
        messages=say('Describe a person as JSON, such as {"name": "Ann", "age": 30}.'),
        temperature=0,
        max_tokens=80,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
    )
    validate(json.loads(answer.choices[0].message.content or ""), schema)


async def test_a_client_that_leaves_frees_the_engine(server: Running, eventually: Eventually) -> None:
    client = server.aclient()
    stream = await client.completions.create(
        model="smollm2", prompt=COUNTED, max_tokens=4000, temperature=0, stream=True
    )
    async for _ in stream:
        break
    await stream.close()
    await eventually(lambda: server.metrics()["requests_running"] == 0, within_s=20)


def test_effective_settings_tell_it(server: Running) -> None:
    told = next(line for line in server.log.read_text().splitlines() if line.startswith("ready "))
    speculation = json.loads(told.removeprefix("ready "))["speculation"]
    assert speculation == {"tokens": 5, "draft_model": "", "lookup_ngram_tokens": 3}

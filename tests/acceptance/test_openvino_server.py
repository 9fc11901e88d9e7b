"""The OpenVINO engine server with the real engine and the real model, spoken to by the official client."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest
from jsonschema import validate

from needs import needs_program
from programs import PROGRAMS

pytestmark = pytest.mark.acceptance

Eventually = Callable[..., Awaitable[object]]
BLOCK = 32
CAPITALS = {"Japan": "Tokyo", "England": "London", "Russia": "Moscow", "China": "Beijing", "Greece": "Athens"}


@dataclass
class Running:
    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def aclient(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def metrics(self) -> dict[str, float]:
        with urlopen(f"{self.url}/metrics") as reply:
            lines = [line for line in reply.read().decode().splitlines() if not line.startswith("#")]
        return {name.removeprefix("modelyard_engine_"): float(value) for name, value in map(str.split, lines)}

    def stepper(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])


def start(python: str, model: str, folder: Path, environment: dict[str, str] | None = None, **changes: Any) -> Running:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config: dict[str, Any] = {
        "model_path": model,
        "served_name": "smollm2",
        "address": f"127.0.0.1:{port}",
        "threads": 2,
        "kv_cache_bytes": 256 << 20,
        "max_batched_tokens": 128,
        "max_sequences": 4,
        "max_queued": 4,
        "context_tokens": 8192,
        "prefix_cache": True,
        "speculative_tokens": 0,
        "draft_model": "",
        "properties": {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "u8",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
        },
        "stall_s": 20,
        "default_temperature": 1.0,
        "default_top_p": 1.0,
        **changes,
    }
    path = folder / "engine.json"
    path.write_text(json.dumps(config))
    log = folder / "engine.log"
    with log.open("w") as out:
        argv = [python, str(PROGRAMS / "openvino_server.py"), "--config", str(path)]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True, env=environment)
    return Running(process, port, log)


def wait_ready(server: Running) -> Running:
    async def poll() -> None:
        async with asyncio.timeout(120):
            while "ready {" not in (text := server.log.read_text()):
                assert server.process.poll() is None, text
                await asyncio.sleep(0.05)

    asyncio.run(poll())
    return server


def stop(server: Running) -> None:
    server.client.close()
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def server(openvino_python: str, smollm2_gguf: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start(openvino_python, smollm2_gguf, tmp_path_factory.mktemp("engine"))
    yield wait_ready(running)
    stop(running)


@pytest.fixture
def small(openvino_python: str, smollm2_gguf: str, tmp_path: Path) -> Iterator[Running]:
    """A pool of 20 blocks, one seat, one place in the queue, and greedy where nothing else is asked."""
    few = {"kv_cache_bytes": 20 * 437_760, "max_sequences": 1, "max_queued": 1, "default_temperature": 0.0}
    running = start(openvino_python, smollm2_gguf, tmp_path, **few)
    yield wait_ready(running)
    stop(running)


def say(text: str) -> Any:
    return [{"role": "user", "content": text}]


def words(count: int, seed: int) -> str:
    return " ".join(f"{seed * 7919 + number}" for number in range(count))


def test_the_configured_temperature_holds_where_a_request_names_none(small: Running) -> None:
    def told(**sampling: float) -> str | None:
        answer = small.client.chat.completions.create(
            model="smollm2", messages=say("Tell me a story."), max_tokens=24, seed=7, **sampling
        )
        return answer.choices[0].message.content

    assert told() == told(temperature=0) != told(temperature=1.5)


def ask(server: Running, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", path, json.dumps({"model": "smollm2", **fields}))
    reply = connection.getresponse()
    status, value = reply.status, json.loads(reply.read())
    connection.close()
    return status, value


def test_tokens_are_counted_as_answers_count_them(server: Running) -> None:
    messages = say("What is the capital of Japan?")
    answer = server.client.chat.completions.create(model="smollm2", messages=messages, max_tokens=1)
    status, counted = ask(server, "/tokenize", messages=messages, return_token_strs=True)
    assert status == 200 and answer.usage is not None
    assert counted["count"] == len(counted["tokens"]) == len(counted["token_strs"]) == answer.usage.prompt_tokens
    assert counted["max_model_len"] == 8192 and {" Japan", "<|im_start|>"} <= set(counted["token_strs"])
    assert ask(server, "/tokenize", messages=messages, add_generation_prompt=False)[1]["count"] < counted["count"]


def test_a_text_comes_back_from_its_tokens(server: Running) -> None:
    text = "Héllo, wörld: 東京 <|im_start|>"
    status, counted = ask(server, "/tokenize", prompt=text)
    assert status == 200 and counted["count"] > 8
    assert ask(server, "/detokenize", tokens=counted["tokens"]) == (200, {"prompt": text})


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/detokenize", {"tokens": [10_000_000]}, "tokens"),
        ("/tokenize", {"prompt": "a", "messages": say("b")}, "prompt"),
        ("/tokenize", {"messages": [{"role": "nobody", "content": "a"}]}, "messages[0].role"),
        ("/tokenize", {"prompt": "a " * 9000}, "prompt"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(
    server: Running, path: str, fields: dict[str, Any], param: str
) -> None:
    status, refused = ask(server, path, **fields)
    assert status == 400 and refused["error"]["param"] == param


@pytest.mark.parametrize("country", CAPITALS)
def test_a_known_answer_is_given(server: Running, country: str) -> None:
    answer = server.client.chat.completions.create(
        model="smollm2", messages=say(f"What is the capital of {country}?"), temperature=0, max_tokens=20
    )
    assert CAPITALS[country] in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 7}])
def test_a_stream_says_exactly_what_the_whole_answer_says(server: Running, sampling: dict[str, Any]) -> None:
    client = server.client
    wanted: dict[str, Any] = {
        "model": "smollm2",
        "messages": say("List five animals with an emoji and their name in Chinese."),
        "max_tokens": 120,
        **sampling,
    }
    whole = client.chat.completions.create(**wanted)
    chunks = list(client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert not any(chunk.usage for chunk in chunks[:-1])


def test_an_answer_that_was_begun_is_gone_on_with(server: Running) -> None:
    """What a gateway asks for when another replica died in the middle of this answer."""
    question: dict[str, Any] = {"model": "smollm2", "messages": say("Tell me about the sea."), "temperature": 0}
    stream = server.client.chat.completions.create(**question, max_tokens=40, stream=True)
    pieces = [event.choices[0].delta.content for event in stream if event.choices and event.choices[0].delta.content]
    whole = "".join(pieces)
    begun = "".join(pieces[:17])
    rest = server.client.chat.completions.create(
        **{**question, "messages": [*say("Tell me about the sea."), {"role": "assistant", "content": begun}]},
        max_tokens=40 - 17,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    first = server.client.chat.completions.create(**question, max_tokens=1)
    assert begun + (rest.choices[0].message.content or "") == whole
    assert rest.usage is not None and first.usage is not None
    assert rest.usage.prompt_tokens == first.usage.prompt_tokens + 17


def test_seeds_decide_the_text(server: Running) -> None:
    client = server.client

    def draw(**seed: int) -> str:
        wanted = {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 1.0}
        return client.completions.create(**wanted, **seed).choices[0].text

    assert draw(seed=11) == draw(seed=11)
    assert draw(seed=11) != draw(seed=12)
    assert draw() != draw()


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_text_never_appears(server: Running, stream: bool) -> None:
    client = server.client
    wanted: dict[str, Any] = {"model": "smollm2", "prompt": "1, 2, 3, 4,", "max_tokens": 60, "temperature": 0}
    free = client.completions.create(**wanted).choices[0].text
    cut = free[7:13]  # begins and ends inside tokens
    answer = client.completions.create(**wanted, stop=[cut, "never"], stream=stream)
    if stream:
        chunks = list(answer)
        text = "".join(chunk.choices[0].text for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].text, answer.choices[0].finish_reason
    assert text == free[: free.index(cut)]
    assert reason == "stop"


def test_max_tokens_end_with_length(server: Running) -> None:
    answer = server.client.completions.create(model="smollm2", prompt="1, 2, 3,", max_tokens=5, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_token_ids_are_a_prompt_and_bad_ones_are_refused(server: Running) -> None:
    client = server.client
    answer = client.completions.create(model="smollm2", prompt=[504, 3575, 282], max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    with pytest.raises(openai.BadRequestError, match="outside the vocabulary"):
        client.completions.create(model="smollm2", prompt=[10_000_000], max_tokens=3)


def test_an_answer_follows_its_json_schema(server: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = server.client.chat.completions.create(
        model="smollm2",
        messages=say("Describe a person."),
        temperature=0,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
    )
    validate(json.loads(answer.choices[0].message.content or ""), schema)


@pytest.mark.parametrize("schema", [{"type": "no such type"}, {"type": "string", "pattern": "("}])
def test_a_schema_that_does_not_compile_is_refused_and_hurts_nobody(server: Running, schema: dict[str, str]) -> None:
    """The engine alone fails this: the first step with such a request throws, and so does every later one."""
    with pytest.raises(openai.BadRequestError) as refused:
        server.client.chat.completions.create(
            model="smollm2",
            messages=say("Describe a person."),
            max_tokens=20,
            response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
        )
    assert refused.value.param == "response_format"
    assert server.client.completions.create(model="smollm2", prompt="1,", max_tokens=2).choices[0].text


def test_mistakes_are_named_as_openai_names_them(server: Running) -> None:
    client = server.client
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="other", messages=say("hi"))
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as many:
        client.chat.completions.create(model="smollm2", messages=say("hi"), n=2)
    assert many.value.param == "n"
    with pytest.raises(openai.BadRequestError, match=r"8192 tokens.*has at least 8192 tokens") as long:
        client.completions.create(model="smollm2", prompt=words(5000, 1))
    assert (long.value.param, long.value.code) == ("prompt", "context_length_exceeded")
    assert [model.id for model in client.models.list()] == ["smollm2"]


def test_effective_settings_are_told(server: Running) -> None:
    with urlopen(f"{server.url}/effective") as reply:
        told = json.load(reply)
    assert told["engine"] == "openvino-genai"
    assert told["properties"]["KV_CACHE_PRECISION"] == "u8"
    assert told["scheduler"]["kv_blocks"] == (256 << 20) // 437_760
    assert told["scheduler"]["kv_cache_bytes"] == told["scheduler"]["kv_blocks"] * 437_760
    assert told["isa"]


def completion_usage(server: Running, prompt: Any, **fields: Any) -> Any:
    wanted = {"model": "smollm2", "prompt": prompt, "max_tokens": 1, "temperature": 0, **fields}
    return server.client.completions.create(**wanted).usage


def test_cached_tokens_are_what_the_engine_really_skips(server: Running) -> None:
    """A step computes at most 128 prompt tokens, so the steps of a prefill count what was computed."""
    prompt = [1000 + number % 997 for number in range(1000)]
    computed: list[int] = []
    cached: list[int] = []
    for tokens in (prompt, prompt, [*prompt, 5, 6], [*prompt[:500], *range(2000, 2500)]):
        before = server.metrics()["steps_total"]
        usage = completion_usage(server, tokens)
        computed.append(int(server.metrics()["steps_total"] - before))
        cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 999, 1000, 480]
    assert computed == [8, 1, 1, 5]  # ceil((1000 - cached) / 128)


async def test_a_client_that_leaves_during_a_long_prefill_frees_the_engine(
    server: Running, eventually: Eventually
) -> None:
    before = server.metrics()
    client = server.aclient()
    asked = asyncio.create_task(
        client.completions.create(model="smollm2", prompt=words(800, 3), max_tokens=500, stream=True)
    )
    await eventually(lambda: server.metrics()["steps_total"] >= before["steps_total"] + 3)
    assert server.metrics()["requests_running"] == 1
    asked.cancel()
    await client.close()
    gone = await eventually(lambda: (now := server.metrics())["requests_running"] == 0 and now, within_s=5)
    assert isinstance(gone, dict)
    assert gone["kv_cache_usage_ratio"] == 0
    assert gone["requests_cancelled_total"] == before["requests_cancelled_total"] + 1
    assert gone["generation_tokens_total"] == before["generation_tokens_total"]


async def test_a_client_that_leaves_during_generation_frees_the_engine(server: Running, eventually: Eventually) -> None:
    before = server.metrics()["requests_cancelled_total"]
    async with server.aclient() as client:
        stream = await client.completions.create(
            model="smollm2", prompt="1, 2, 3,", max_tokens=4000, stream=True, temperature=0
        )
        async for _ in stream:
            break
    await eventually(lambda: server.metrics()["requests_running"] == 0, within_s=5)
    assert server.metrics()["requests_cancelled_total"] == before + 1


async def test_leaving_during_prefill_beside_others_does_not_poison_the_prefix_cache(
    server: Running, eventually: Eventually
) -> None:
    """The engine alone fails this: it marks a block as cached when it is allocated, before it is computed."""
    filler = "The keeper of the lighthouse wrote in his book about the sea and the ships. " * 120
    prompt = f"{filler}The capital of Japan is Tokyo. The capital of Russia is Moscow. The capital of England is"
    client = server.aclient()
    other = asyncio.create_task(
        client.completions.create(model="smollm2", prompt="1, 2, 3,", max_tokens=300, temperature=0)
    )
    await eventually(lambda: server.metrics()["requests_running"] == 1)
    steps = server.metrics()["steps_total"]
    leaving = server.aclient()
    asked = asyncio.create_task(leaving.completions.create(model="smollm2", prompt=prompt, max_tokens=1))
    await eventually(lambda: server.metrics()["requests_running"] == 2)
    await eventually(lambda: server.metrics()["steps_total"] >= steps + 4)
    asked.cancel()
    await leaving.close()
    await other
    wanted: dict[str, Any] = {"model": "smollm2", "max_tokens": 12, "temperature": 0}
    again = await client.completions.create(prompt=prompt, **wanted)
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    assert again.choices[0].text.startswith(" London")
    await client.close()


async def test_two_prompts_that_continue_one_cached_text_do_not_mix(server: Running) -> None:
    """The engine alone fails this: both write into the one partly filled block that they were given."""
    client = server.aclient()
    wanted: dict[str, Any] = {"model": "smollm2", "temperature": 0}

    async def answer(prompt: str) -> str:
        return (await client.completions.create(prompt=prompt, max_tokens=2, **wanted)).choices[0].text

    for round_number in range(5):
        common = f"Here is story {round_number}:"
        anna, rome = f"{common}{' Anna,' * 10}", f"{common}{' Rome,' * 10}"
        await client.completions.create(prompt=common, max_tokens=1, **wanted)
        assert await asyncio.gather(answer(anna), answer(rome)) == [" Anna,", " Rome,"]
    await client.close()


async def test_more_than_the_seats_and_the_queue_is_turned_away_at_once(small: Running, eventually: Eventually) -> None:
    client = small.aclient()

    def ask(tokens: int) -> asyncio.Task[Any]:
        wanted = {"model": "smollm2", "prompt": "1, 2, 3,", "temperature": 0, "max_tokens": tokens}
        return asyncio.create_task(client.completions.create(**wanted))

    seated = ask(400)
    await eventually(lambda: small.metrics()["requests_running"] == 1)
    queued = ask(5)
    await eventually(lambda: small.metrics()["requests_waiting"] == 1)
    with pytest.raises(openai.InternalServerError) as full:
        await ask(5)
    assert full.value.status_code == 503
    assert full.value.response.headers["retry-after"] == "1"
    assert (await seated).usage.completion_tokens == 400
    assert (await queued).usage.completion_tokens == 5
    await client.close()


def test_output_is_bounded_by_the_kv_pool_and_never_hangs(small: Running) -> None:
    limit = (20 - 1) * BLOCK
    answer = small.client.completions.create(
        model="smollm2", prompt="1, 2, 3,", temperature=0, extra_body={"min_p": 0.0}
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens <= limit
    with pytest.raises(openai.BadRequestError, match=f"{limit} tokens"):
        small.client.completions.create(model="smollm2", prompt=words(400, 5), max_tokens=1)


async def test_a_stopped_stepping_process_turns_health_red(
    openvino_python: str, smollm2_gguf: str, tmp_path: Path, eventually: Eventually
) -> None:
    server = start(openvino_python, smollm2_gguf, tmp_path, stall_s=0.5)
    try:
        await eventually(lambda: "ready {" in server.log.read_text(), within_s=120)
        os.kill(server.stepper(), signal.SIGSTOP)
        async with server.aclient() as client:
            asked = asyncio.create_task(client.completions.create(model="smollm2", prompt="1,", max_tokens=5))
            await eventually(lambda: health(server) == (503, "stalled"))
            os.kill(server.stepper(), signal.SIGCONT)
            await asked
        assert health(server) == (200, "ok")
    finally:
        stop(server)


def health(server: Running) -> tuple[int, str]:
    """Status code and status; (0, "") while nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", "/health")
        reply = connection.getresponse()
        return reply.status, json.load(reply)["status"]
    except ConnectionRefusedError:
        return 0, ""
    finally:
        connection.close()


async def test_every_route_says_loading_until_the_model_is_there(
    openvino_python: str, smollm2_gguf: str, tmp_path: Path, eventually: Eventually
) -> None:
    server = start(openvino_python, smollm2_gguf, tmp_path)
    try:
        await eventually(lambda: health(server)[0] != 0)
        assert health(server) == (503, "loading")
        assert server.metrics() == {"ready": 0}
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 10) == 0
    finally:
        stop(server)


async def test_the_server_names_the_cause_when_the_stepping_process_dies(small: Running) -> None:
    os.kill(small.stepper(), signal.SIGKILL)
    assert await asyncio.to_thread(small.process.wait, 10) == 1
    assert small.log.read_text().splitlines()[-1].startswith("error: the stepping process was killed by SIGKILL")


async def test_the_stepping_process_dies_with_the_server(small: Running, eventually: Eventually) -> None:
    stepper = small.stepper()
    small.process.kill()
    await asyncio.to_thread(small.process.wait, 10)
    await eventually(lambda: not Path(f"/proc/{stepper}/cmdline").exists(), within_s=10)


async def test_a_model_that_cannot_be_read_is_a_named_cause(openvino_python: str, tmp_path: Path) -> None:
    model = tmp_path / "broken.gguf"
    model.write_bytes(b"GGUF nonsense")
    server = start(openvino_python, str(model), tmp_path)
    assert await asyncio.to_thread(server.process.wait, 60) == 1
    last = server.log.read_text().splitlines()[-1]
    assert last.startswith("error: ")
    assert "broken.gguf" in last


async def test_an_unknown_key_is_one_line_and_exit_2(openvino_python: str, tmp_path: Path) -> None:
    server = start(openvino_python, str(tmp_path), tmp_path, colour="red")
    assert await asyncio.to_thread(server.process.wait, 60) == 2
    assert server.log.read_text().startswith("error: unknown key 'colour'")


def test_nothing_is_sent_home_while_loading_and_answering(
    openvino_python: str, smollm2_gguf: str, tmp_path: Path
) -> None:
    """Every connect() of both processes is traced; the server itself only listens."""
    strace = needs_program("strace")
    trace = tmp_path / "trace"
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {strace} -D -f -qq -e trace=connect -o {trace} {openvino_python} "$@"\n')
    wrapper.chmod(0o755)
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    server = start(str(wrapper), smollm2_gguf, tmp_path, environment=home)
    try:
        wait_ready(server)
        assert server.client.completions.create(model="smollm2", prompt="1, 2,", max_tokens=4).choices[0].text
    finally:
        stop(server)
    calls = [line for line in trace.read_text().splitlines() if "connect(" in line]
    assert [line for line in calls if "AF_INET" in line] == []

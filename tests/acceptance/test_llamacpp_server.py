"""The llama.cpp engine server with the real engine and the real model, spoken to by the official client."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import struct
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

from modelyard.engines import prometheus_text
from modelyard.engines.contract import ExitReport, Failure, Installed
from modelyard.engines.llamacpp import PROGRAM, LlamaCpp
from modelyard.models.catalogue import SMOLLM2, KnowledgeProbe
from needs import needs_program

pytestmark = pytest.mark.acceptance

Eventually = Callable[..., Awaitable[object]]


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

    def metric(self, name: str) -> float:
        with urlopen(f"{self.url}/metrics") as reply:
            value = prometheus_text.total(prometheus_text.parse(reply.read().decode()), f"llamacpp:{name}")
        assert value is not None
        return value

    def engine(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def failure(self, code: int) -> Failure:
        """What the adapter makes of its end."""
        tail = tuple(self.log.read_text().splitlines()[-50:])
        return LlamaCpp().explain_failure(ExitReport(code=code, signal=None, out_of_memory=False, tail=tail))


def start(
    python: str, model: str | Path, folder: Path, environment: dict[str, str] | None = None, **changes: Any
) -> Running:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config: dict[str, Any] = {
        "model_path": str(model),
        "served_name": "smollm2",
        "address": f"127.0.0.1:{port}",
        "threads": 1,
        "max_batched_tokens": 64,
        "max_sequences": 3,
        "max_queued": 3,
        "context_tokens": 4096,
        "cache_type_k": "f16",
        "cache_type_v": "f16",
        "flash_attention": "on",
        "prefix_cache": True,
        "speculative_tokens": 0,
        "draft_model": "",
        "default_temperature": 1.0,
        "default_top_p": 1.0,
        **changes,
    }
    path = folder / "engine.json"
    path.write_text(json.dumps(config))
    log = folder / "engine.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [python, str(PROGRAM), "--config", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            text=True,
            cwd=folder,
            env={**(os.environ if environment is None else environment), "GGML_NO_BACKTRACE": "1"},
        )
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
def server(llamacpp: Installed, smollm2_gguf: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start(llamacpp.python, smollm2_gguf, tmp_path_factory.mktemp("engine"))
    yield wait_ready(running)
    stop(running)


@pytest.fixture
def small(llamacpp: Installed, smollm2_gguf: str, tmp_path: Path) -> Iterator[Running]:
    """One seat, one place in the queue, 512 tokens of context, and greedy where nothing else is asked."""
    few = {"max_sequences": 1, "max_queued": 1, "context_tokens": 512, "default_temperature": 0.0}
    running = start(llamacpp.python, smollm2_gguf, tmp_path, **few)
    yield wait_ready(running)
    stop(running)


def say(text: str) -> Any:
    return [{"role": "user", "content": text}]


def words(count: int, seed: int) -> str:
    return " ".join(f"{seed * 7919 + number}" for number in range(count))


@pytest.mark.parametrize("probe", SMOLLM2.probes, ids=[probe.expected for probe in SMOLLM2.probes])
def test_a_known_answer_is_given(server: Running, probe: KnowledgeProbe) -> None:
    wanted: dict[str, Any] = {"model": "smollm2", "temperature": 0, "max_tokens": 24}
    if probe.kind == "chat":
        answer: Any = server.client.chat.completions.create(messages=say(probe.prompt), **wanted)
        text = answer.choices[0].message.content
    else:
        answer = server.client.completions.create(prompt=probe.prompt, **wanted)
        text = answer.choices[0].text
    assert probe.expected in text
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 7}])
def test_a_stream_says_exactly_what_the_whole_answer_says(server: Running, sampling: dict[str, Any]) -> None:
    wanted: dict[str, Any] = {
        "model": "smollm2",
        "messages": say("List five animals with an emoji and their name in Chinese."),
        "max_tokens": 60,
        **sampling,
    }
    create = server.client.chat.completions.create
    create(**wanted)  # a prompt from the cache may round otherwise than a fresh one: both shall find the same cache
    whole = create(**wanted)
    chunks = list(create(**wanted, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert not any("prompt_progress" in (chunk.model_extra or {}) for chunk in chunks)


def test_a_chat_stream_has_no_usage_for_who_did_not_ask(server: Running) -> None:
    chunks = list(server.client.chat.completions.create(model="smollm2", messages=say("Hi"), max_tokens=3, stream=True))
    assert [chunk for chunk in chunks if chunk.usage or not chunk.choices] == []


def test_log_probabilities_of_a_chat_are_whole_and_streamed_alike(server: Running) -> None:
    wanted: dict[str, Any] = {
        "model": "smollm2",
        "messages": say("What is the capital of Japan?"),
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    create = server.client.chat.completions.create
    create(**wanted)
    whole = [one.token for one in create(**wanted).choices[0].logprobs.content]
    streamed = [
        one.token
        for chunk in create(**wanted, stream=True)
        for one in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert streamed == whole
    assert len(whole) == 4


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
    def draw(**seed: int) -> str:
        wanted = {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 16, "temperature": 1.0}
        return server.client.completions.create(**wanted, **seed).choices[0].text

    draw()
    assert draw(seed=11) == draw(seed=11)
    assert draw(seed=11) != draw(seed=12)
    assert draw() != draw()


def test_the_configured_temperature_holds_where_a_request_names_none(small: Running) -> None:
    def told(**sampling: float) -> str | None:
        answer = small.client.chat.completions.create(
            model="smollm2", messages=say("Tell me a story."), max_tokens=24, seed=7, **sampling
        )
        return answer.choices[0].message.content

    told()
    assert told() == told(temperature=0) != told(temperature=1.5)


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_text_never_appears(server: Running, stream: bool) -> None:
    wanted: dict[str, Any] = {"model": "smollm2", "prompt": "1, 2, 3, 4,", "max_tokens": 40, "temperature": 0}
    create = server.client.completions.create
    create(**wanted)
    free = create(**wanted).choices[0].text
    cut = free[7:13]  # begins and ends inside tokens
    answer = create(**wanted, stop=[cut, "never"], stream=stream)
    chunks = list(answer) if stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == free[: free.index(cut)]
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_follows_its_json_schema(server: Running, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    answer: Any = server.client.chat.completions.create(
        model="smollm2",
        messages=say("Describe one large city."),
        temperature=0,
        max_tokens=120,
        stream=stream,
        response_format=form,
    )
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    validate(json.loads(text), schema)


def test_a_prompt_that_comes_again_is_taken_from_the_cache(server: Running) -> None:
    def cached(text: str) -> tuple[int, int]:
        answer = server.client.completions.create(model="smollm2", prompt=text, max_tokens=1, temperature=0)
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0, answer.usage.prompt_tokens

    text = words(30, 11)
    first, whole = cached(text)
    again, _ = cached(text)
    assert first < whole - 1 == again


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "other"}, 404, "model", "model_not_found"),
        ({"n": 2}, 400, "n", "unsupported_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools", "unsupported_parameter"),
        ({"messages": say("one " * 4096)}, 400, None, "context_length_exceeded"),
        ({"temperature": "hot"}, 400, None, None),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, 400, None, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1"}}]}]},
         400, "messages[0].content", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_is_refused_in_openais_words(
    server: Running, fields: dict[str, Any], status: int, param: str | None, code: str | None, stream: bool
) -> None:
    wanted: dict[str, Any] = {"model": "smollm2", "messages": say("Hi"), "max_tokens": 1, "stream": stream, **fields}
    with pytest.raises(openai.APIStatusError) as caught:
        server.client.chat.completions.create(**wanted)
    assert (caught.value.status_code, caught.value.param, caught.value.code) == (status, param, code)
    assert caught.value.type == "invalid_request_error"


def test_an_output_ends_where_the_context_does(small: Running) -> None:
    answer = small.client.completions.create(model="smollm2", prompt="1, 2, 3,", temperature=0)
    assert answer.usage is not None
    assert answer.usage.total_tokens <= 512
    assert answer.choices[0].finish_reason in ("length", "stop")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
async def test_a_client_that_leaves_during_a_long_prefill_frees_the_engine(
    server: Running, eventually: Eventually, stream: bool, beside: bool
) -> None:
    """Counted in steps, not in seconds: what the machine does else at this moment changes nothing."""
    others = server.aclient()
    other = asyncio.create_task(
        others.completions.create(model="smollm2", prompt="1, 2,", max_tokens=3000, extra_body={"ignore_eos": True})
    )
    if beside:
        await eventually(lambda: server.metric("requests_processing") == 1)
    else:
        other.cancel()
    running = int(beside)
    await eventually(lambda: server.metric("requests_processing") == running)
    before = server.metric("prompt_tokens_total")
    client = server.aclient()
    prompt = words(650, 3 + 2 * stream + beside)  # five tokens a word
    asked = asyncio.create_task(
        client.completions.create(model="smollm2", prompt=prompt, max_tokens=500, stream=stream)
    )
    await eventually(lambda: server.metric("requests_processing") == running + 1)
    asked.cancel()
    await client.close()
    await eventually(lambda: server.metric("requests_processing") == running, within_s=15)
    await eventually(lambda: server.metric("prompt_tokens_total") > before)
    assert server.metric("prompt_tokens_total") - before < 2000, "the rest of 3,250 tokens was not computed"
    other.cancel()
    await others.close()
    await eventually(lambda: server.metric("requests_processing") == 0, within_s=15)


async def test_a_client_that_leaves_during_generation_frees_the_engine(server: Running, eventually: Eventually) -> None:
    async with server.aclient() as client:
        stream = await client.completions.create(
            model="smollm2", prompt="1, 2, 3,", max_tokens=3000, stream=True, temperature=0
        )
        async for _ in stream:
            break
    await eventually(lambda: server.metric("requests_processing") == 0, within_s=15)
    assert server.metric("tokens_predicted_total") < 3000


async def test_more_than_the_seats_and_the_queue_is_turned_away_at_once(small: Running, eventually: Eventually) -> None:
    client = small.aclient()

    def ask(tokens: int) -> asyncio.Task[Any]:
        wanted = {"model": "smollm2", "prompt": "1, 2, 3,", "temperature": 0, "max_tokens": tokens}
        return asyncio.create_task(client.completions.create(**wanted))

    seated = ask(400)
    await eventually(lambda: small.metric("requests_processing") == 1)
    queued = ask(5)
    await eventually(lambda: small.metric("requests_deferred") == 1)
    with pytest.raises(openai.InternalServerError) as full:
        await ask(5)
    assert full.value.status_code == 503
    assert full.value.response.headers["retry-after"] == "1"
    assert (await seated).usage.completion_tokens == 400
    assert (await queued).usage.completion_tokens == 5
    await client.close()


async def test_a_client_that_leaves_the_queue_is_never_begun(small: Running, eventually: Eventually) -> None:
    wanted: dict[str, Any] = {"model": "smollm2", "prompt": "1, 2, 3,", "temperature": 0}
    async with small.aclient() as staying:
        seated = asyncio.create_task(staying.completions.create(**wanted, max_tokens=200))
        await eventually(lambda: small.metric("requests_processing") == 1)
        leaving = small.aclient()
        queued = asyncio.create_task(leaving.completions.create(**wanted, max_tokens=5))
        await eventually(lambda: small.metric("requests_deferred") == 1)
        queued.cancel()
        await leaving.close()
        await eventually(lambda: small.metric("requests_deferred") == 0)
        assert (await seated).usage.completion_tokens == 200
    assert small.metric("tokens_predicted_total") == 200


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


def test_a_loaded_server_is_healthy(server: Running) -> None:
    assert health(server) == (200, "ok")


async def test_every_route_says_loading_until_the_model_is_there(
    llamacpp: Installed, smollm2_gguf: str, tmp_path: Path, eventually: Eventually
) -> None:
    server = start(llamacpp.python, smollm2_gguf, tmp_path)
    try:
        await eventually(lambda: health(server)[0] != 0)
        assert health(server) == (503, "loading")
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 10) == 0
    finally:
        stop(server)


async def test_the_server_names_the_cause_when_the_engine_process_dies(small: Running) -> None:
    os.kill(small.engine(), signal.SIGKILL)
    assert await asyncio.to_thread(small.process.wait, 10) == 1
    assert small.log.read_text().splitlines()[-1].startswith("error: the engine process was killed by SIGKILL")
    assert small.failure(1).kind == "killed"


async def test_the_engine_process_dies_with_the_server(small: Running, eventually: Eventually) -> None:
    engine = small.engine()
    small.process.kill()
    await asyncio.to_thread(small.process.wait, 10)
    await eventually(lambda: not Path(f"/proc/{engine}/cmdline").exists(), within_s=10)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header_of(architecture: str) -> bytes:
    """A GGUF file that says nothing but its architecture."""
    return (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + text("general.architecture")
        + struct.pack("<I", 8)
        + text(architecture)
    )


def broken(whole: bytes, how: str) -> bytes:
    tensor, name = whole.index(b"blk.3.ffn_up.weight"), b"blk.3.ffn_up.weight"
    kind = tensor + len(name) + 4 + 8 * 2
    if how == "cut short":
        return whole[:60_000_000]
    if how == "not GGUF":
        return b"hello, this is no model" * 10
    if how == "a tensor missing":
        return whole[:tensor] + b"blk.3.ffn_xx.weight" + whole[tensor + len(name) :]
    if how == "a type of the future":
        return whole[:kind] + struct.pack("<I", 99) + whole[kind + 4 :]
    return header_of("gemma99")


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("cut short", "cut short"),
        ("not GGUF", "not GGUF"),
        ("a tensor missing", "blk.3.ffn_up.weight"),
        ("a type of the future", "type (99)"),
        ("an architecture of the future", "'gemma99'"),
    ],
)
async def test_a_model_that_cannot_be_read_is_a_named_cause(
    llamacpp: Installed, smollm2_gguf: str, tmp_path: Path, how: str, cause: str
) -> None:
    model = tmp_path / "broken.gguf"
    model.write_bytes(broken(Path(smollm2_gguf).read_bytes(), how))
    server = start(llamacpp.python, model, tmp_path)
    assert await asyncio.to_thread(server.process.wait, 60) == 1
    failure = server.failure(1)
    assert (failure.kind, failure.permanent) == ("model", True)
    assert cause in failure.cause


@pytest.mark.parametrize(
    ("changes", "code", "kind", "cause"),
    [
        ({"colour": "red"}, 2, "bad_config", "unknown key 'colour'"),
        ({"model_path": "/nowhere.gguf"}, 2, "model", "not at /nowhere.gguf"),
        ({"max_batched_tokens": 2}, 2, "bad_config", "max_batched_tokens"),
        ({"max_sequences": 257, "max_batched_tokens": 512, "context_tokens": 256}, 1, "bad_config", "at most 256"),
        ({"cache_type_v": "q8_0", "flash_attention": "off"}, 1, "bad_config", "flash_attention is off"),
        ({"address": "unix:/nowhere/x.sock"}, 1, "crashed", "cannot listen"),
    ],
)
async def test_a_configuration_that_cannot_be_is_a_named_cause(
    llamacpp: Installed,
    smollm2_gguf: str,
    tmp_path: Path,
    changes: dict[str, Any],
    code: int,
    kind: str,
    cause: str,
) -> None:
    server = start(llamacpp.python, smollm2_gguf, tmp_path, **changes)
    assert await asyncio.to_thread(server.process.wait, 60) == code
    failure = server.failure(code)
    assert failure.kind == kind
    assert cause in failure.cause


async def test_too_little_memory_is_a_named_cause(llamacpp: Installed, smollm2_gguf: str, tmp_path: Path) -> None:
    """An address space that holds the model and not its KV cache of 755 MB."""
    limited = tmp_path / "python"
    limited.write_text(f'#!/bin/sh\nulimit -v 600000\nexec {llamacpp.python} "$@"\n')
    limited.chmod(0o755)
    server = start(str(limited), smollm2_gguf, tmp_path, context_tokens=8192, max_sequences=4)
    assert await asyncio.to_thread(server.process.wait, 60) == 1
    failure = server.failure(1)
    assert (failure.kind, failure.permanent) == ("out_of_memory", False)
    assert "KV cache" in failure.cause


_ASK = """
import os, sys
import xllamacpp
for name in sys.argv[1:]:
    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.verbosity = f"{name}.gguf", ["ask.sock"], 1
    params.fit_params = False
    if os.path.exists("ask.sock"):
        os.unlink("ask.sock")
    try:
        xllamacpp.Server(params)
    except RuntimeError:
        pass
"""


def test_the_library_knows_every_architecture_that_we_claim(llamacpp: Installed, tmp_path: Path) -> None:
    claimed = LlamaCpp.capabilities.architectures
    names = [*claimed, "no-such-architecture"]
    for name in names:
        (tmp_path / f"{name}.gguf").write_bytes(header_of(name))
    said = subprocess.run(
        [llamacpp.python, "-c", _ASK, *names], cwd=tmp_path, capture_output=True, text=True, timeout=120
    ).stderr
    assert set(re.findall(r"(?:unknown|unsupported) model architecture: '(.+?)'", said)) == {"no-such-architecture"}
    assert set(re.findall(r"key not found in model: ([^.\s]+)\.", said)) == claimed


def test_nothing_is_sent_home_while_loading_and_answering(
    llamacpp: Installed, smollm2_gguf: str, tmp_path: Path
) -> None:
    """Every connect() of both processes is traced; the server itself only listens."""
    strace = needs_program("strace")
    trace = tmp_path / "trace"
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {strace} -D -f -qq -e trace=connect -o {trace} {llamacpp.python} "$@"\n')
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

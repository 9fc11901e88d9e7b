"""The packaged model on vLLM by changing one word: made into its form, started, proved, served, killed, back again.

One start of vLLM takes half a minute on two idle cores: all tests share four, and stand in the order of those."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from jsonschema import validate

from commands import Command
from modelyard.cli.seven_steps import STEPS
from modelyard.engines.contract import EngineMetrics
from modelyard.engines.registry import engine
from modelyard.models.catalogue import SMOLLM2, KnowledgeProbe
from modelyard.records.base import decode
from modelyard.records.topology import Topology
from modelyard.state import StateDirectory
from yards import processes_of

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1200), pytest.mark.usefixtures("vllm")]

Eventually = Callable[..., Awaitable[Any]]
STARTS_WITHIN_S = 600.0
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def command(prepared: StateDirectory) -> Command:
    return Command(prepared.root, timeout_s=STARTS_WITHIN_S)


@pytest.fixture(scope="module")
def up(command: Command) -> list[dict[str, Any]]:
    """What `up -d --json` said: the only difference to the default is one word."""
    return command("up", "-d", "--engine", "vllm", "--port", "0", "--json", check=True).lines


@pytest.fixture(scope="module")
def serving(up: list[dict[str, Any]]) -> dict[str, Any]:
    return up[-1]


@pytest.fixture(scope="module")
def client(serving: dict[str, Any]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=serving["url"], api_key=serving["key"], max_retries=0, timeout=120) as made:
        yield made


def address_of(state: StateDirectory) -> str:
    [deployment] = decode(state.topology.read_bytes(), Topology).deployments
    return deployment.replicas[0].address.removeprefix("unix:") if deployment.replicas else ""


async def engine_metrics(state: StateDirectory) -> EngineMetrics:
    connector = aiohttp.UnixConnector(address_of(state))
    async with aiohttp.ClientSession("http://engine", connector=connector) as session, session.get("/metrics") as reply:
        return engine("vllm").read_metrics(await reply.text())


def ranks_of(state: StateDirectory) -> dict[int, str]:
    """The engine's processes but the leader, with what they call themselves: cores and workers."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid for pid, words in processes_of(state).items() if "vllm_server.py --model" in words}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    names: dict[int, str] = {}
    for pid in found:
        with contextlib.suppress(OSError):
            names[pid] = (Path("/proc") / str(pid) / "cmdline").read_bytes().strip(b"\0").decode()
    return {pid: name for pid, name in names.items() if name.startswith("VLLM::")}


def test_the_packaged_model_is_made_into_the_engines_form_and_proved(up: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in up[:-1]] == list(STEPS)
    results = {line["step"]: line["result"] for line in up[:-1]}
    assert f"de-quantised from sha256 {SMOLLM2.file.sha256[:12]}" in results["model"]
    assert results["framework"].startswith("vllm, 1 replica")
    assert results["verification"] == "19 of 19 checks green"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("probe", SMOLLM2.probes, ids=[probe.expected for probe in SMOLLM2.probes])
def test_the_probes_are_answered(client: openai.OpenAI, probe: KnowledgeProbe, stream: bool) -> None:
    wanted: dict[str, Any] = {"model": "smollm2", "max_tokens": 24, "temperature": 0, "stream": stream}
    if probe.kind == "chat":
        answer: Any = client.chat.completions.create(messages=[{"role": "user", "content": probe.prompt}], **wanted)
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        else:
            text = answer.choices[0].message.content
    else:
        answer = client.completions.create(prompt=probe.prompt, **wanted)
        text = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
    assert probe.expected in text


def test_tokens_are_those_that_the_model_was_trained_with(client: openai.OpenAI) -> None:
    """Digits one by one, the words as in every other engine: a wrong cut would show in no probe."""
    usage = client.completions.create(model="smollm2", prompt="1234567890 and Berlin's", max_tokens=1).usage
    assert usage is not None
    assert usage.prompt_tokens == 10 + 3


def test_a_repeated_prompt_is_found_in_the_cache_and_said(client: openai.OpenAI) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 20
    for _ in range(2):
        usage = client.completions.create(model="smollm2", prompt=prompt, max_tokens=1).usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) > usage.prompt_tokens // 2


async def test_it_is_asked_in_the_dialects_that_it_speaks_itself(serving: dict[str, Any]) -> None:
    ask: Any = {"model": "smollm2", "messages": [{"role": "user", "content": "What is the capital of Japan?"}]}
    greedy: Any = {"max_tokens": 20, "extra_body": {"temperature": 0}}
    origin = serving["url"].removesuffix("/v1")
    async with anthropic.AsyncAnthropic(base_url=origin, api_key=serving["key"], max_retries=0, timeout=120) as client:
        whole = await client.messages.create(**ask, **greedy)
        async with client.messages.stream(**ask, **greedy) as stream:
            streamed = await stream.get_final_message()
        counted = await client.messages.count_tokens(**ask)
    assert "Tokyo" in whole.content[0].text
    assert [block.text for block in streamed.content] == [block.text for block in whole.content]
    usage = whole.usage  # vLLM counts what it has read from its cache, and written to it, beside the other tokens
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    assert usage.input_tokens + cached == counted.input_tokens
    assert streamed.usage.output_tokens == whole.usage.output_tokens > 0
    async with openai.AsyncOpenAI(
        base_url=serving["url"], api_key=serving["key"], max_retries=0, timeout=120
    ) as client:
        question, few = ask["messages"][0]["content"], 20
        response = await client.responses.create(model="smollm2", input=question, temperature=0, max_output_tokens=few)
        async with client.responses.stream(
            model="smollm2", input=question, temperature=0, max_output_tokens=few
        ) as events:
            streamed_response = await events.get_final_response()
    assert "Tokyo" in response.output_text == streamed_response.output_text


def test_a_json_schema_gives_valid_json(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 30}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Name one city."}],
        temperature=0,
        max_tokens=100,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
    )
    validate(json.loads(answer.choices[0].message.content or ""), schema)


@pytest.mark.parametrize("when", ["decoding", "prefill"])
async def test_a_client_that_leaves_frees_the_engine(
    prepared: StateDirectory, serving: dict[str, Any], eventually: Eventually, when: str
) -> None:
    before = await engine_metrics(prepared)
    numbers = " ".join(str(7919 + number) for number in range(800))
    prompt = numbers if when == "prefill" else "1, 2, 3,"
    async with openai.AsyncOpenAI(base_url=serving["url"], api_key=serving["key"], max_retries=0) as client:
        asked = asyncio.create_task(
            client.completions.create(model="smollm2", prompt=prompt, max_tokens=4000, temperature=0)
        )

        async def is_computing() -> bool:
            now = await engine_metrics(prepared)
            return now.running == 1 and (now.work_done or 0) >= (before.work_done or 0) + 2

        await eventually(is_computing)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

        async def is_free() -> bool:
            return (await engine_metrics(prepared)).running == 0

        await eventually(is_free, within_s=5.0)


async def test_a_killed_core_ends_the_engine_which_comes_back_proved(
    prepared: StateDirectory, client: openai.OpenAI, eventually: Eventually
) -> None:
    await comes_back_after_the_death_of("EngineCore", prepared, eventually)
    assert "Paris" in await eventually(lambda: continued(client, "smollm2"))


def continued(client: openai.OpenAI, model: str) -> str:
    """Empty while the gateway, which reads the topology ten times a second, has not read of the new launch."""
    try:
        said = client.completions.create(model=model, prompt="The capital of France is", max_tokens=4, temperature=0)
    except openai.InternalServerError as error:
        assert error.status_code == 503
        return ""
    return said.choices[0].text


async def comes_back_after_the_death_of(name: str, state: StateDirectory, eventually: Eventually) -> None:
    """Every process of the launch ends with one of them, and another launch is routed to."""
    before, address = ranks_of(state), address_of(state)
    [victim] = [pid for pid, words in before.items() if name in words]
    os.kill(victim, signal.SIGKILL)
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before), within_s=60.0)
    await eventually(lambda: address_of(state) not in ("", address), within_s=STARTS_WITHIN_S)


def deployment_of_ranks(folder: Path, ranks: int) -> str:
    file = folder / f"{ranks}.yaml"
    file.write_text(
        "apiVersion: modelyard/v1\n"
        "name: ranks\nmodel: smollm2\nengine: vllm\ngateway: {port: 0}\n"
        "limits: {context_tokens: 2048, max_in_flight: 4}\n"
        f"settings: {{tensor_parallel: {ranks}}}\n"
    )
    return str(file)


def test_heads_that_cannot_be_divided_are_refused_before_anything_starts(command: Command, tmp_path: Path) -> None:
    refused = command("plan", deployment_of_ranks(tmp_path, 2))
    assert refused.code == 5
    assert "tensor_parallel is 2: 9 heads and 3 KV heads cannot be divided among them" in refused.err
    assert "use one of 1, 3, 9" in refused.err


async def test_three_ranks_serve_one_replica_and_die_together(
    command: Command, prepared: StateDirectory, serving: dict[str, Any], eventually: Eventually, tmp_path: Path
) -> None:
    command("down", check=True)
    lines = command("up", "-d", "--json", deployment_of_ranks(tmp_path, 3), check=True).lines
    results = {line["step"]: line["result"] for line in lines[:-1]}
    assert results["verification"] == "19 of 19 checks green"
    assert sum("Worker" in name for name in ranks_of(prepared).values()) == 3
    await comes_back_after_the_death_of("Worker_TP1", prepared, eventually)
    with openai.OpenAI(base_url=lines[-1]["url"], api_key=serving["key"], max_retries=0) as client:
        assert "Paris" in await eventually(lambda: continued(client, "ranks"))


async def test_nothing_is_left_after_the_end(
    command: Command, prepared: StateDirectory, eventually: Eventually
) -> None:
    command("down", check=True)
    await eventually(lambda: not processes_of(prepared) and not ranks_of(prepared))
    assert [path for path in prepared.sockets.iterdir() if path.name != "shims.sock"] == []
    assert list(prepared.launches.iterdir()) == []

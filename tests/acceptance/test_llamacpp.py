"""llama.cpp from one command to a proved endpoint: the real engine and the real model, through the gateway."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from commands import Command
from modelyard.engines.contract import EngineMetrics
from modelyard.engines.llamacpp import LlamaCpp
from modelyard.records.base import decode
from modelyard.records.topology import Topology
from modelyard.state import StateDirectory
from yards import processes_of

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("llamacpp")]

Eventually = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def serving(command: Command) -> dict[str, Any]:
    """The last line of `up -d --json --engine llama.cpp`: url, key."""
    lines = command("up", "-d", "--port", "0", "--engine", "llama.cpp", "--json", check=True).lines
    results = {line["step"]: line["result"] for line in lines[:-1]}
    assert results["environment"].endswith(f"llama.cpp {LlamaCpp.requirements.version}")
    assert results["verification"] == "19 of 19 checks green"
    return lines[-1]


def aclient(serving: dict[str, Any]) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=serving["url"], api_key=serving["key"], max_retries=0, timeout=120)


async def engine_metrics(state: StateDirectory) -> EngineMetrics:
    """The engine's own numbers, from the engine itself, as the adapter reads them."""
    [deployment] = decode(state.topology.read_bytes(), Topology).deployments
    connector = aiohttp.UnixConnector(deployment.replicas[0].address.removeprefix("unix:"))
    async with aiohttp.ClientSession("http://engine", connector=connector) as session, session.get("/metrics") as reply:
        return LlamaCpp().read_metrics(await reply.text())


async def is_free(state: StateDirectory, eventually: Eventually) -> EngineMetrics:
    async def free() -> EngineMetrics | None:
        now = await engine_metrics(state)
        return now if now.running == 0 else None

    return await eventually(free)


def done(before: EngineMetrics, after: EngineMetrics) -> float:
    """Steps between two looks. A step of 64 prompt tokens takes 0.4 s of a core: steps say what seconds cannot, while
    other work wants the same cores."""
    assert before.work_done is not None and after.work_done is not None
    return after.work_done - before.work_done


def test_chat_answers_through_the_gateway(command: Command, serving: dict[str, Any]) -> None:
    answer = command("chat", "smollm2", "--json", "-m", "What is the capital of Japan?", check=True).value
    assert "Tokyo" in answer["answer"]


async def test_other_dialects_are_spoken_over_it_and_count_as_it_counts(serving: dict[str, Any]) -> None:
    """Anthropic's official client; llama.cpp behind our server has chats and a tokenizer."""
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
    assert streamed.usage.output_tokens == whole.usage.output_tokens > 0
    assert whole.usage.input_tokens + whole.usage.cache_read_input_tokens == counted.input_tokens


async def test_a_text_comes_back_from_its_tokens(serving: dict[str, Any]) -> None:
    text, origin = "Héllo, wörld: 東京 <|im_start|>", serving["url"].removesuffix("/v1")
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {serving['key']}"}) as session:

        async def told(path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
            async with session.post(f"{origin}{path}", json={"model": "smollm2", **fields}) as reply:
                return reply.status, await reply.json()

        status, counted = await told("/tokenize", prompt=text, return_token_strs=True)
        assert status == 200 and counted["count"] == len(counted["tokens"]) > 8
        assert "<|im_start|>" in counted["token_strs"]
        assert await told("/detokenize", tokens=counted["tokens"]) == (200, {"prompt": text})
        assert (await told("/detokenize", tokens=[10_000_000]))[0] == 400
        assert (await told("/v1/embeddings", input=text))[0] == 501


async def test_a_client_that_leaves_in_the_middle_frees_the_engine(
    prepared: StateDirectory, serving: dict[str, Any], eventually: Eventually
) -> None:
    async with aclient(serving) as client:
        stream = await client.completions.create(
            model="smollm2", prompt="1, 2, 3,", max_tokens=4000, stream=True, temperature=0
        )
        async for _ in stream:
            break
        at_leaving = await engine_metrics(prepared)
        await stream.close()
        assert done(at_leaving, await is_free(prepared, eventually)) < 400


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_client_that_leaves_during_a_long_prefill_frees_the_engine_after_the_step_that_runs(
    prepared: StateDirectory, serving: dict[str, Any], eventually: Eventually, stream: bool
) -> None:
    before = await engine_metrics(prepared)
    prompt = " ".join(str(7919 + 7 * stream + number) for number in range(800))  # 4,000 tokens, 63 steps
    async with aclient(serving) as client:
        asked = asyncio.create_task(
            client.completions.create(model="smollm2", prompt=prompt, max_tokens=500, stream=stream)
        )

        async def is_computing() -> EngineMetrics | None:
            now = await engine_metrics(prepared)
            return now if now.running == 1 and done(before, now) >= 2 else None

        at_leaving = await eventually(is_computing)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        after = await is_free(prepared, eventually)
    assert done(at_leaving, after) <= 2
    assert after.generated_tokens == before.generated_tokens, "it left before the first token"


def engine_processes(state: StateDirectory, program: str) -> list[int]:
    """Those that run `program` for this state directory."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if any(word.endswith(f"/{program}") for word in words) and any(str(state.root) in word for word in words):
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("program", ["llamacpp_engine.py", "llamacpp_server.py"])
async def test_an_engine_that_is_killed_comes_back_and_is_proved_again(
    command: Command, prepared: StateDirectory, serving: dict[str, Any], eventually: Eventually, program: str
) -> None:
    def replica() -> dict[str, Any]:
        [deployment] = command("status", "--json").value["deployments"]
        return {"open": deployment["open"], "launch": deployment["replicas"][0]["launch"]}

    before = replica()
    assert before["open"]
    [victim] = engine_processes(prepared, program)
    os.kill(victim, signal.SIGKILL)

    def is_back() -> bool:
        now = replica()
        return now["open"] and now["launch"] != before["launch"]

    await eventually(is_back, within_s=90)
    answer = command("chat", "smollm2", "--json", "-m", "What is the capital of Japan?", check=True).value
    assert "Tokyo" in answer["answer"]


def test_down_leaves_nothing_running(command: Command, prepared: StateDirectory, serving: dict[str, Any]) -> None:
    assert command("down", "--json", check=True).value["was_running"]
    assert processes_of(prepared) == {}
    assert engine_processes(prepared, "llamacpp_engine.py") == []
    assert list(prepared.launches.iterdir()) == [], "the engine's private socket went with its launch"

"""From one command to a proved endpoint, spoken to by the official client: the real engine and the real model."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from jsonschema import validate

from commands import Command
from modelyard.cli.seven_steps import STEPS
from modelyard.engines import prometheus_text
from modelyard.engines.contract import Installed
from modelyard.models.catalogue import SMOLLM2, KnowledgeProbe
from modelyard.records.base import decode
from modelyard.records.plan import Artifact
from modelyard.records.topology import Topology
from modelyard.state import StateDirectory, is_locked
from yards import processes_of

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("openvino")]

Eventually = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def serving(command: Command) -> dict[str, Any]:
    """The last line of `up -d --json`: url, key."""
    lines = command("up", "-d", "--port", "0", "--json", check=True).lines
    assert [line["step"] for line in lines[:-1]] == list(STEPS)
    assert all(line["ok"] for line in lines[:-1])
    assert lines[-1]["event"] == "serving" and lines[-1]["key"]
    return lines[-1]


@pytest.fixture(scope="module")
def client(serving: dict[str, Any]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=serving["url"], api_key=serving["key"], max_retries=0, timeout=120) as made:
        yield made


def aclient(serving: dict[str, Any]) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=serving["url"], api_key=serving["key"], max_retries=0, timeout=120)


async def engine_metrics(state: StateDirectory) -> dict[str, float]:
    """The engine's own numbers, from the engine itself."""
    [deployment] = decode(state.topology.read_bytes(), Topology).deployments
    connector = aiohttp.UnixConnector(deployment.replicas[0].address.removeprefix("unix:"))
    async with aiohttp.ClientSession("http://engine", connector=connector) as session, session.get("/metrics") as reply:
        samples = prometheus_text.parse(await reply.text())
    names = ("requests_running", "requests_cancelled_total", "steps_total", "generation_tokens_total")
    return {name: prometheus_text.total(samples, f"modelyard_engine_{name}") or 0.0 for name in names}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("probe", SMOLLM2.probes, ids=[probe.expected for probe in SMOLLM2.probes])
def test_the_probes_are_answered(client: openai.OpenAI, probe: KnowledgeProbe, stream: bool) -> None:
    wanted: dict[str, Any] = {"model": "smollm2", "max_tokens": 24, "temperature": 0, "stream": stream}
    if probe.kind == "chat":
        answer: Any = client.chat.completions.create(messages=[{"role": "user", "content": probe.prompt}], **wanted)
        text = (
            "".join(chunk.choices[0].delta.content or "" for chunk in answer)
            if stream
            else answer.choices[0].message.content
        )
    else:
        answer = client.completions.create(prompt=probe.prompt, **wanted)
        text = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
    assert probe.expected in text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_json_schema_gives_valid_json(client: openai.OpenAI, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 30},
            "country": {"type": "string", "maxLength": 30},
            "population": {"type": "integer", "minimum": 0, "maximum": 100_000_000},
        },
        "required": ["city", "country", "population"],
        "additionalProperties": False,
    }
    answer: Any = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Describe one large city."}],
        temperature=0,
        max_tokens=200,
        stream=stream,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
    )
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    validate(json.loads(text), schema)


async def test_a_client_that_leaves_in_the_middle_frees_the_engine_within_a_second(
    prepared: StateDirectory, serving: dict[str, Any], eventually: Eventually
) -> None:
    before = await engine_metrics(prepared)
    async with aclient(serving) as client:
        stream = await client.completions.create(
            model="smollm2", prompt="1, 2, 3,", max_tokens=4000, stream=True, temperature=0
        )
        async for _ in stream:
            break
        await stream.close()
        await is_free_within_a_second(prepared, before, eventually)


async def test_a_client_that_leaves_during_a_long_prefill_frees_the_engine_within_a_second(
    prepared: StateDirectory, serving: dict[str, Any], eventually: Eventually
) -> None:
    before = await engine_metrics(prepared)
    numbers = " ".join(str(7919 + number) for number in range(4000))
    prompt = numbers[: len(numbers) // 5]  # five tokens a number, 4,000 in all
    async with aclient(serving) as client:
        asked = asyncio.create_task(
            client.completions.create(model="smollm2", prompt=prompt, max_tokens=500, stream=True)
        )

        async def is_computing() -> bool:
            now = await engine_metrics(prepared)
            return now["steps_total"] >= before["steps_total"] + 2 and now["requests_running"] == 1

        await eventually(is_computing)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        after = await is_free_within_a_second(prepared, before, eventually)
    assert after["generation_tokens_total"] == before["generation_tokens_total"], "it left before the first token"


async def is_free_within_a_second(
    state: StateDirectory, before: dict[str, float], eventually: Eventually
) -> dict[str, float]:
    async def is_free() -> dict[str, float] | None:
        now = await engine_metrics(state)
        return now if now["requests_running"] == 0 else None

    after = await eventually(is_free, within_s=1.0)
    assert after["requests_cancelled_total"] == before["requests_cancelled_total"] + 1
    return after


def test_a_second_up_changes_nothing_and_the_first_key_stays(command: Command, serving: dict[str, Any]) -> None:
    lines = command("up", "-d", "--json", check=True).lines
    assert {line["step"]: line["result"] for line in lines[:-1]}[
        "verification"
    ] == "nothing changed: it was open already"
    assert lines[-1] == {
        "event": "serving",
        "url": serving["url"],
        "deployments": ["smollm2"],
        "key": None,
        "key_id": None,
    }


def test_status_says_that_it_is_well(command: Command, serving: dict[str, Any]) -> None:
    value = command("status", "--json", check=True).value
    [deployment] = value["deployments"]
    assert value["serving"]["url"] == serving["url"]
    assert (deployment["name"], deployment["open"], deployment["artifact_sha256"]) == (
        "smollm2",
        True,
        SMOLLM2.file.sha256,
    )
    assert len(deployment["evidence"]) == 19
    assert all(one["verdict"] == "green" for one in deployment["evidence"])
    shown = command("status", "smollm2", check=True).out
    assert serving["url"] in shown and "knowledge-8" in shown


def test_chat_answers_once_and_leaves_no_key_behind(command: Command, serving: dict[str, Any]) -> None:
    assert "Paris" in command("chat", "-m", "What is the capital of France?", check=True).out
    answer = command("chat", "smollm2", "--json", "-m", "What is the capital of Japan?", check=True).value
    assert answer["deployment"] == "smollm2" and "Tokyo" in answer["answer"]
    keys = command("keys", "list", "--json", check=True).value
    assert all(key["revoked_at"] for key in keys if key["name"].startswith("chat"))
    wrong = command("chat", "nobody", "-m", "hi")
    assert (wrong.code, "there is no deployment 'nobody'" in wrong.err) == (2, True)


def test_logs_show_what_the_engine_said(command: Command, serving: dict[str, Any]) -> None:
    assert "ready {" in command("logs", check=True).out
    assert len(command("logs", "smollm2", "-n", "1", check=True).out.splitlines()) == 1
    assert set(command("logs", "--json", check=True).value) == {"smollm2-0.log"}
    command("logs", "--yard", "--control", "--gateway", check=True)
    assert command("logs", "nobody").code == 2


def test_verify_asks_everything_again(command: Command, serving: dict[str, Any]) -> None:
    report = command("verify", "smollm2", "--json", check=True).value
    assert [one["verdict"] for one in report["evidence"]] == ["green"] * 19


def test_a_key_works_until_it_is_revoked(command: Command, serving: dict[str, Any]) -> None:
    made = command("keys", "create", "visitor", "--days", "1", "--deployment", "smollm2", "--json", check=True).value
    with openai.OpenAI(base_url=serving["url"], api_key=made["key"], max_retries=0) as visitor:
        assert [model.id for model in visitor.models.list()] == ["smollm2"]
        command("keys", "revoke", made["id"], check=True)
        deadline = time.monotonic() + 1.0
        with pytest.raises(openai.AuthenticationError):
            while time.monotonic() < deadline:
                visitor.models.list()
    listed = {key["id"]: key for key in command("keys", "list", "--json", check=True).value}
    assert listed[made["id"]]["revoked_at"]
    assert made["key"] not in command("keys", "list", check=True).out
    assert command("keys", "revoke", "nobody").code == 2


def test_plan_models_and_engines_tell_without_starting_anything(command: Command, serving: dict[str, Any]) -> None:
    [plan] = command("plan", "--json", check=True).value
    assert plan["replicas"][0]["engine"] == "openvino" and plan["predictions"]
    assert "requests at once" in command("plan", check=True).out
    # Beside it may stand what other tests have made of it for other engines.
    here = {model["name"]: model["here"] for model in command("models", "list", "--json", check=True).value}
    assert here["smollm2"]
    card = command("models", "show", "smollm2", "--json", check=True).value["card"]
    assert (card["architecture"], card["layers"]) == ("llama", 30)
    engines = {one["name"]: one for one in command("engines", "list", "--json", check=True).value}
    assert engines["openvino"]["installed"]["version"]


def test_a_local_file_is_served_beside_what_is_served_already(
    command: Command, serving: dict[str, Any], smollm2_gguf: str, tmp_path: Path, client: openai.OpenAI
) -> None:
    copy = tmp_path / "my-model.gguf"
    shutil.copy(smollm2_gguf, copy)
    local = command("up", "-d", "--json", str(copy), check=True).lines
    assert local[-1]["deployments"] == ["my-model"]
    assert sorted(model.id for model in client.models.list()) == ["my-model", "smollm2"]
    answer = client.chat.completions.create(
        model="my-model",
        messages=[{"role": "user", "content": "What is the capital of Japan?"}],
        temperature=0,
        max_tokens=24,
    )
    assert "Tokyo" in (answer.choices[0].message.content or "")
    status = {one["name"]: one for one in command("status", "--json", check=True).value["deployments"]}
    assert status["my-model"]["artifact_sha256"] == SMOLLM2.file.sha256


def test_restart_starts_the_engine_afresh_and_down_ends_everything(
    command: Command, prepared: StateDirectory, serving: dict[str, Any], client: openai.OpenAI
) -> None:
    def launch() -> str:
        deployments = command("status", "--json").value["deployments"]
        return next(one for one in deployments if one["name"] == "smollm2")["replicas"][0]["launch"]

    first = launch()
    command("restart", "smollm2", check=True)
    lines = command("up", "-d", "--json", check=True).lines
    proved = {line["step"]: line["result"] for line in lines[:-1]}["verification"]
    assert proved in (
        "proved before, unchanged; one question asked again",
        "nothing changed: it was open already",
    )
    assert launch() != first
    assert [model.id for model in client.models.list()]
    assert command("down", "--json", check=True).value == {"was_running": True, "purged": False}
    assert processes_of(prepared) == {} and not is_locked(prepared.yard_lock)
    assert command("status").code == 9
    assert command("down").out == "nothing was running\n"


def test_evidence_outlives_a_stop_and_two_deployments_come_from_one_file(
    command: Command, serving: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "modelyard.yaml"
    file.write_text(
        "apiVersion: modelyard/v1\n"
        "gateway: {port: 0}\n"
        "deployments:\n"
        "  - {name: smollm2, model: smollm2}\n"
        "  - {name: second, model: smollm2, limits: {max_in_flight: 2, kv_cache: 256MiB, context_tokens: 2048}}\n"
    )
    lines = command("up", "-d", "--json", str(file), check=True).lines
    proved = {(line["deployment"], line["step"]): line["result"] for line in lines[:-1]}
    assert proved["smollm2", "verification"] == "proved before, unchanged; one question asked again"
    assert proved["second", "verification"] == "19 of 19 checks green"
    assert lines[-1]["deployments"] == ["smollm2", "second"]
    assert lines[-1]["key"] is None, "the key from before is still good"
    with openai.OpenAI(base_url=lines[-1]["url"], api_key=serving["key"], max_retries=0) as client:
        for name in ("smollm2", "second"):
            answer = client.completions.create(
                model=name, prompt="The capital of France is", max_tokens=4, temperature=0
            )
            assert "Paris" in answer.choices[0].text
    command("down", check=True)


def test_from_nothing_to_an_answer_and_back_to_nothing(openvino: Installed, smollm2: Artifact, tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "fresh")
    command = Command(state.root)
    lines = command("up", "-d", "--port", "0", "--json", check=True).lines
    assert [line["step"] for line in lines[:-1]] == list(STEPS)
    with openai.OpenAI(base_url=lines[-1]["url"], api_key=lines[-1]["key"], max_retries=0) as client:
        answer = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "What is the capital of Japan?"}],
            temperature=0,
            max_tokens=24,
        )
    assert "Tokyo" in (answer.choices[0].message.content or "")
    assert command("down", "--purge", "--json", check=True).value == {"was_running": True, "purged": True}
    assert not state.root.exists() and not state.sockets.exists()
    assert processes_of(state) == {}

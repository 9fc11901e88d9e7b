"""Each check is green on a sound engine, and red on one that is wrong in exactly its way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from modelyard.clock import SYSTEM
from modelyard.engines.contract import Capabilities
from modelyard.models.catalogue import KnowledgeProbe
from modelyard.records.evidence import Evidence
from modelyard.records.fingerprint import Fingerprint
from modelyard.verify.checks import stop_string
from modelyard.verify.report import Report, explain
from modelyard.verify.run import EVERYTHING, SMOKE, VALID_S, Selection, Target, checks_for, required_checks, verify

CONTEXT_TOKENS = 500
NUMBERS = [f"number{index} " for index in range(40)]
PROBES = (
    KnowledgeProbe(kind="chat", prompt="What is the capital of Japan?", expected="Tokyo", margin=0.67),
    KnowledgeProbe(kind="completion", prompt="The capital of France is", expected="Paris", margin=0.94),
)
FUNCTIONAL_NAMES = {
    "chat",
    "completion",
    "chat-stream",
    "completion-stream",
    "stop",
    "max-tokens",
    "usage",
    "json-schema",
    "unknown-model",
    "context",
    "malformed-json",
}


@dataclass
class ScriptedEngine:
    """A sound OpenAI engine whose words are its tokens, apart from its one defect."""

    defect: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(0)
            return await self._answer(request)
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.defect == "bottomless":
            return web.Response(body=b'{"x":' + b"[" * 100_000)
        chat = request.path == "/v1/chat/completions"
        if self.defect == "hangs" or (self.defect == "completion hangs" and not chat):
            await asyncio.Event().wait()
        try:
            body = await request.json()
        except json.JSONDecodeError:
            return web.Response(status=500) if self.defect == "malformed is 500" else _refusal(400, "not JSON")
        self.seen.append(body)
        if body["model"] != "tiny" and self.defect != "any model":
            return _refusal(404, "no such model") if self.defect != "bare 404" else web.Response(status=404, text="no")
        if (self.defect == "chat is 500" and chat) or (self.defect == "completion is 500" and not chat):
            return _refusal(500, "broken")
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        if len(prompt.split()) >= CONTEXT_TOKENS and self.defect != "cuts prompts":
            return _refusal(400, "too long")
        return await self._respond(request, body, prompt, chat)

    async def _respond(self, request: web.Request, body: dict[str, Any], prompt: str, chat: bool) -> web.StreamResponse:
        streamed = body.get("stream", False)
        pieces, finish = self._generate(prompt, body, streamed)
        usage = self._usage(prompt, pieces, streamed)
        if not streamed:
            text = "".join(pieces) if not (self.defect == "empty" and chat) else ""
            inner = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            kind = "chat.completion" if chat else "text_completion"
            choices = [{"index": 0, "finish_reason": finish, **inner}]
            return web.json_response({"object": kind, "choices": choices, "usage": usage})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        if (self.defect == "chat stream drops" and chat) or (self.defect == "completion stream drops" and not chat):
            pieces = pieces[:-1]
        for piece in pieces:
            await _event(response, [{"delta": {"content": piece}} if chat else {"text": piece}])
        if self.defect == "error mid-stream":
            await response.write(b'data: {"error": {"message": "boom", "type": "server_error"}}\n\n')
        if self.defect == "truncates":
            return response
        await _event(
            response, [{"delta": {}, "finish_reason": finish} if chat else {"text": "", "finish_reason": finish}]
        )
        if body.get("stream_options", {}).get("include_usage") and self.defect != "no stream usage":
            await _event(response, [], usage)
        if self.defect != "no done":
            await response.write(b"data: [DONE]\n\n")
        return response

    def _generate(self, prompt: str, body: dict[str, Any], streamed: bool) -> tuple[list[str], str]:
        if "response_format" in body and self.defect != "ignores schema":
            wrong = (
                {"city": "Osaka", "certain": True}
                if self.defect == "wrong enum"
                else {"city": "Tokyo", "certain": True}
            )
            return [json.dumps(wrong)], "stop"
        if known := next((probe for probe in PROBES if probe.prompt == prompt), None):
            return [f" {known.expected}." if self.defect != "no facts" else " I like cheese."], "stop"
        limit = body["max_tokens"] * (2 if self.defect == "generous" else 1)
        limit = 40 if self.defect == "no limit, false count" else limit
        pieces, finish = NUMBERS[:limit], "length"
        text = "".join(pieces)
        stop = body.get("stop", ["\0"])[0]
        if stop in text and self.defect != "ignores stop" and not (self.defect == "stream ignores stop" and streamed):
            end = text.index(stop) + (len(stop) if self.defect == "keeps stop" else 0)
            pieces, finish = [text[:end]], "stop" if self.defect != "stop says length" else "length"
        return pieces, finish

    def _usage(self, prompt: str, pieces: list[str], streamed: bool) -> dict[str, int]:
        asked = len(prompt.split()) if self.defect != "constant prompt count" else 7
        made = len(pieces) + (1 if self.defect == "stream counts differ" and streamed else 0)
        made = min(made, 6) if self.defect == "no limit, false count" else made
        return {
            "prompt_tokens": asked,
            "completion_tokens": made,
            "total_tokens": asked + made + (1 if self.defect == "wrong total" else 0),
        }


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=status)


async def _event(response: web.StreamResponse, choices: list[Any], usage: dict[str, int] | None = None) -> None:
    await response.write(b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n\n")


@asynccontextmanager
async def listening(engine: ScriptedEngine, socket: Path) -> AsyncGenerator[str]:
    app = web.Application()
    app.router.add_post("/{path:.*}", engine.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield f"unix:{socket}"
    finally:
        await runner.cleanup()


def target(address: str, *, endpoints: tuple[str, ...] = (), structured: bool = True, probes: bool = True) -> Target:
    return Target(
        deployment="small",
        address=address,
        model="tiny",
        capabilities=Capabilities(
            formats=frozenset({"gguf"}),
            architectures=frozenset({"llama"}),
            endpoints=frozenset(endpoints or ("/v1/chat/completions", "/v1/completions")),
            unix_socket=True,
            structured_output=structured,
            cached_token_usage=False,
            drains_on_terminate=False,
        ),
        context_tokens=CONTEXT_TOKENS,
        fingerprint=Fingerprint(artifact="a", engine="e", configuration="c", machine="m"),
        probes=PROBES if probes else (),
    )


async def verified(
    tmp_path: Path, engine: ScriptedEngine, *, only: Selection = EVERYTHING, deadline_s: float = 20.0, **changes: Any
) -> Report:
    async with listening(engine, tmp_path / "engine.sock") as address:
        return await verify(
            target(address, **changes), clock=SYSTEM, on_result=lambda _: None, only=only, deadline_s=deadline_s
        )


def red(report: Report) -> set[str]:
    return {evidence.check for evidence in report.red}


async def test_a_sound_engine_is_green_in_every_check(tmp_path: Path) -> None:
    report = await verified(tmp_path, ScriptedEngine())
    assert report.green, explain(report)
    assert {evidence.check for evidence in report.evidence} == FUNCTIONAL_NAMES | {"knowledge-1", "knowledge-2"}
    assert report.skipped == () and explain(report) == []


@pytest.mark.parametrize(
    ("defect", "refuted"),
    [
        ("empty", {"chat", "chat-stream", "stop", "max-tokens", "json-schema", "knowledge-1"}),
        (
            "chat is 500",
            {"chat", "chat-stream", "stop", "max-tokens", "usage", "json-schema", "context", "knowledge-1"},
        ),
        ("completion is 500", {"completion", "completion-stream", "knowledge-2"}),
        ("chat stream drops", {"chat-stream", "stop"}),
        ("completion stream drops", {"completion-stream"}),
        ("truncates", {"chat-stream", "completion-stream", "stop", "usage"}),
        ("error mid-stream", {"chat-stream", "completion-stream", "stop", "usage"}),
        ("no done", {"chat-stream", "completion-stream", "stop", "usage"}),
        ("no stream usage", {"chat-stream", "completion-stream", "usage"}),
        ("ignores stop", {"stop"}),
        ("stream ignores stop", {"stop"}),
        ("keeps stop", {"stop"}),
        ("stop says length", {"stop"}),
        ("generous", {"max-tokens"}),
        ("wrong total", {"usage"}),
        ("constant prompt count", {"usage"}),
        ("stream counts differ", {"chat-stream", "completion-stream", "usage"}),
        ("ignores schema", {"json-schema"}),
        ("wrong enum", {"json-schema"}),
        ("any model", {"unknown-model"}),
        ("bare 404", {"unknown-model"}),
        ("cuts prompts", {"context"}),
        ("malformed is 500", {"malformed-json"}),
        ("no facts", {"knowledge-1", "knowledge-2"}),
    ],
)
async def test_a_defect_turns_exactly_the_checks_red_that_it_refutes(
    tmp_path: Path, defect: str, refuted: set[str]
) -> None:
    report = await verified(tmp_path, ScriptedEngine(defect))
    assert red(report) == refuted
    assert not report.green


async def test_a_red_report_says_what_why_and_what_to_try(tmp_path: Path) -> None:
    report = await verified(tmp_path, ScriptedEngine("no facts"))
    what, why, advice = explain(report)[:3]
    assert what == "knowledge-1: not proved that the model still answers 'What is the capital of Japan?'"
    assert "' I like cheese.'" in why and "contains 'Tokyo'" in why
    assert "quantisation" in advice


async def test_a_hung_engine_is_red_once_and_asked_nothing_more(tmp_path: Path) -> None:
    report = await verified(tmp_path, ScriptedEngine("hangs"), deadline_s=0.2)
    assert red(report) == {"chat"} and not report.green
    assert len(report.evidence) == 1 and report.evidence[0].measured == "no answer within 0.2 s"
    assert {skipped.check for skipped in report.skipped} == FUNCTIONAL_NAMES - {"chat"} | {"knowledge-1", "knowledge-2"}


async def test_a_replica_that_nobody_listens_for_is_red_at_once(tmp_path: Path) -> None:
    report = await verify(target(f"unix:{tmp_path}/absent.sock"), clock=SYSTEM, on_result=lambda _: None)
    assert red(report) == {"chat"}
    assert "nothing answers at the replica's address" in report.evidence[0].measured


async def test_what_the_engine_does_not_claim_is_listed_and_not_green(tmp_path: Path) -> None:
    report = await verified(
        tmp_path,
        ScriptedEngine("completion is 500"),
        endpoints=("/v1/chat/completions",),
        structured=False,
        probes=False,
    )
    asked = {evidence.check for evidence in report.evidence}
    assert report.green
    assert {skipped.check: skipped.reason for skipped in report.skipped} == {
        "completion": "the engine does not claim /v1/completions",
        "completion-stream": "the engine does not claim /v1/completions",
        "json-schema": "the engine does not claim structured output",
        "knowledge": "this model has no knowledge probes; its answers are not judged",
    }
    assert asked == FUNCTIONAL_NAMES - {"completion", "completion-stream", "json-schema"}
    assert asked == required_checks(
        target("unix:/none", endpoints=("/v1/chat/completions",), structured=False, probes=False)
    )


@pytest.mark.parametrize(("probes", "asked"), [(True, "knowledge-1"), (False, "chat")])
async def test_smoke_asks_one_chat_question(tmp_path: Path, probes: bool, asked: str) -> None:
    engine = ScriptedEngine()
    report = await verified(tmp_path, engine, only=SMOKE, probes=probes)
    assert [evidence.check for evidence in report.evidence] == [asked] and report.green
    assert len(engine.seen) == 1 and "messages" in engine.seen[0]


async def test_smoke_is_red_where_the_known_answer_is_wrong(tmp_path: Path) -> None:
    assert red(await verified(tmp_path, ScriptedEngine("no facts"), only=SMOKE)) == {"knowledge-1"}


async def test_checks_that_compare_run_alone_and_the_others_together(tmp_path: Path) -> None:
    alone = ScriptedEngine()
    await verified(tmp_path, alone, only=lambda checks: tuple(check for check in checks if check.alone))
    assert alone.most_running == 1
    together = ScriptedEngine()
    await verified(tmp_path, together, only=lambda checks: tuple(check for check in checks if not check.alone))
    assert 1 < together.most_running <= 4


async def test_each_outcome_is_told_as_it_is_known_and_bound_to_the_fingerprint(tmp_path: Path) -> None:
    told: list[Evidence] = []
    async with listening(ScriptedEngine("wrong total"), tmp_path / "engine.sock") as address:
        wanted = target(address)
        report = await verify(wanted, clock=SYSTEM, on_result=told.append)
    assert tuple(told) == report.evidence and len(told) == len(checks_for(wanted))
    one = next(evidence for evidence in told if evidence.check == "usage")
    assert (one.deployment, one.verdict, one.fingerprint) == ("small", "red", wanted.fingerprint)
    assert one.expires_at - one.at == VALID_S and one.command == "modelyard verify small"
    assert "+6=" in one.measured and one.duration_s >= 0


async def test_a_bottomless_answer_is_red_and_harmless(tmp_path: Path) -> None:
    report = await verified(tmp_path, ScriptedEngine("bottomless"))
    assert len(report.red) == len(report.evidence) and "not an OpenAI answer" in report.evidence[0].measured


async def test_an_endless_answer_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelyard.verify.replica.MAX_ANSWER_BYTES", 100)
    report = await verified(tmp_path, ScriptedEngine(), only=SMOKE)
    assert "longer than 100 bytes" in report.evidence[0].measured


def test_an_answer_that_repeats_itself_is_stopped_at_its_first_round() -> None:
    # What a Q8_0 file of SmolLM2 says to the question of the check.
    text = 'The number of words in the sentence "The number of words in the sentence is'
    stop = stop_string(text)
    assert text.partition(stop)[0].startswith("The number of words in the sen")


@given(st.text(alphabet="ab c", max_size=40))
def test_a_stop_string_ends_an_answer_somewhere_behind_its_beginning(text: str) -> None:
    stop = stop_string(text)
    if stop:
        assert len(stop) == 6 and text.find(stop) > 0
    else:
        assert len(text) < 7 or len(set(text)) == 1

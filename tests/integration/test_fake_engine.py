"""The FakeEngine as a real child: what it says on the wire, and that each knob does what it promises."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from modelyard.engines.contract import Addresses, ExitReport, Installed
from modelyard.engines.fake import FakeAdapter
from modelyard.errors import EngineFailed
from modelyard.records.plan import Artifact, ReplicaPlan, Setting
from modelyard.testing import FakeEngine

Eventually = Callable[..., Awaitable[object]]
CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"

USER = {"role": "user", "content": "count the words"}


def a_chat(text: str = "Hello", **fields: object) -> dict[str, object]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}


def a_prompt(text: str = "Hello", **fields: object) -> dict[str, object]:
    return {"model": "fake", "prompt": text, **fields}


def on_the_wire(body: dict[str, object], path: str = CHAT) -> bytes:
    content = json.dumps(body).encode()
    return b"POST %b HTTP/1.1\r\nhost: e\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(content), content)


async def connect(engine: FakeEngine) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(engine.address.removeprefix("unix:"))


async def until_closed(engine: FakeEngine, request: bytes) -> bytes:
    """All bytes that come on one connection until the engine closes it."""
    reader, writer = await connect(engine)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()


async def events(engine: FakeEngine, body: dict[str, object], path: str = CHAT) -> list[Any]:
    """The events of a streamed answer, decoded but for the last, [DONE]."""
    async with engine.client() as client, client.post(path, json={**body, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = (await response.read()).decode().split("\n\n")
    assert lines.pop() == ""
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def status_of(engine: FakeEngine, path: str = "/health") -> int:
    async with engine.client() as client, client.get(path) as response:
        return response.status


async def metric(engine: FakeEngine, name: str) -> float | None:
    async with engine.client() as client, client.get("/metrics") as response:
        return getattr(FakeAdapter().read_metrics(await response.text()), name)


async def counters(engine: FakeEngine) -> dict[str, Any]:
    return (await engine.seen())["counters"]


# What it says


async def test_a_chat_is_answered_in_the_shape_of_openai():
    async with FakeEngine(tokens=3) as engine:
        answer = await engine.request("POST", CHAT, a_chat("one two three four"))
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": "fake",
        "system_fingerprint": "fake",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "w0 w1 w2", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 3,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_a_streamed_chat_opens_with_the_role_and_closes_with_the_reason():
    async with FakeEngine(tokens=2) as engine:
        chunks = await events(engine, a_chat())
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "w0"},
        {"content": " w1"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


async def test_usage_comes_in_a_chunk_of_its_own_only_where_it_was_asked_for():
    async with FakeEngine(tokens=2) as engine:
        *chunks, last = await events(engine, a_chat(stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)


async def test_a_completion_is_answered_whole_and_streamed():
    async with FakeEngine(tokens=3) as engine:
        whole = await engine.request("POST", COMPLETION, a_prompt(max_tokens=2))
        chunks = await events(engine, a_prompt(max_tokens=2), COMPLETION)
    assert whole["object"] == "text_completion"
    assert whole["choices"] == [{"index": 0, "text": "w0 w1", "logprobs": None, "finish_reason": "length"}]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["w0", " w1", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_it_knows_some_capitals_unless_facts_are_off():
    async with FakeEngine() as engine:
        chat = await engine.request("POST", CHAT, a_chat("What is the capital of Japan?"))
        prompt = await engine.request("POST", COMPLETION, a_prompt("The capital of France is"))
        await engine.set(facts=False)
        wrong = await engine.request("POST", CHAT, a_chat("What is the capital of Japan?"))
    assert chat["choices"][0]["message"]["content"] == "The capital of Japan is Tokyo."
    assert prompt["choices"][0]["text"] == " Paris."
    assert "Tokyo" not in wrong["choices"][0]["message"]["content"]


async def test_stop_ends_an_answer_before_the_text_whole_and_streamed():
    async with FakeEngine() as engine:
        whole = await engine.request("POST", CHAT, a_chat(stop=["2 w3"]))
        chunks = await events(engine, a_chat(stop="2 w3"))
    assert whole["choices"][0]["message"]["content"] == "w0 w1 w"
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "w0 w1 w"


async def test_a_json_schema_is_obeyed():
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 2}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    async with FakeEngine() as engine:
        answer = await engine.request("POST", CHAT, a_chat(response_format=form))
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"n": 2}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}', 404, "model"),
        (b'{"messages": []}', 400, "model"),
        (b'{"model": "fake", "messages": []}', 400, "messages"),
        (b'{"model": "fake", "messages": ["x"]}', 400, "messages"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', 400, "max_tokens"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "x"}], "stop": 1}', 400, "stop"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "1 2 3 4"}]}', 400, "messages"),
    ],
)
async def test_a_request_that_cannot_be_served_is_refused_in_the_shape_of_openai(
    body: bytes, status: int, param: str | None
):
    async with (
        FakeEngine(context_tokens=4) as engine,
        engine.client() as client,
        client.post(CHAT, data=body) as response,
    ):
        assert response.status == status
        error = (await response.json())["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"]


async def test_thoughts_are_told_apart_from_the_answer():
    async with FakeEngine(tokens=4, thoughts=2) as engine:
        reply = await engine.request("POST", "/v1/chat/completions", {"model": "fake", "messages": [USER]})
    message = reply["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("w0 w1", " w2 w3")


async def test_a_tool_is_called_until_its_result_is_there():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    ask = {"model": "fake", "messages": [USER], "tools": tools}
    async with FakeEngine(call_tools=True) as engine:
        called = (await engine.request("POST", "/v1/chat/completions", ask))["choices"][0]
        ask["messages"] = [USER, {"role": "tool", "tool_call_id": "x", "content": "1"}]
        answered = (await engine.request("POST", "/v1/chat/completions", ask))["choices"][0]
    assert called["finish_reason"] == "tool_calls"
    assert called["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 0}'}
    assert answered["finish_reason"] == "stop" and answered["message"]["content"]


async def test_tokens_are_counted_as_answers_count_them():
    async with FakeEngine() as engine:
        counted = await engine.request("POST", "/tokenize", {"model": "fake", "messages": [USER]})
        answer = await engine.request("POST", "/v1/chat/completions", {"model": "fake", "messages": [USER]})
        back = await engine.request("POST", "/detokenize", {"model": "fake", "tokens": counted["tokens"]})
    assert counted["count"] == answer["usage"]["prompt_tokens"]
    assert back == {"prompt": USER["content"]}


async def test_an_unknown_path_and_a_wrong_method_are_refused():
    async with FakeEngine() as engine:
        assert await status_of(engine, "/v1/audio") == 404
        assert await status_of(engine, CHAT) == 405


async def test_the_models_and_the_effective_knobs_are_told():
    async with FakeEngine(served_name="demo", context_tokens=99) as engine:
        (model,) = (await engine.request("GET", "/v1/models"))["data"]
        effective = await engine.request("GET", "/effective")
    assert (model["id"], model["object"], model["max_model_len"]) == ("demo", "model", 99)
    assert (effective["served_name"], effective["context_tokens"]) == ("demo", 99)


async def test_a_prompt_seen_before_is_cached_and_counted_so():
    async with FakeEngine() as engine:
        await engine.request("POST", CHAT, a_chat("one two three"))
        again = await engine.request("POST", CHAT, a_chat("one two three"))
        assert (await counters(engine))["cached_prompt_tokens"] == 2
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 2


async def test_metrics_count_what_was_done():
    async with FakeEngine(tokens=5) as engine:
        await engine.request("POST", CHAT, a_chat("one two three"))
        assert await metric(engine, "generated_tokens") == 5
        assert await metric(engine, "prompt_tokens") == 3
        assert await metric(engine, "work_done") == 6
        assert await metric(engine, "running") == 0


async def test_what_reached_the_engine_can_be_read_back():
    async with FakeEngine() as engine:
        async with engine.client() as client:
            await client.post(CHAT, json=a_chat("Grüße"), headers={"X-Probe": "yes"})
            await client.get("/health")
        (request,) = (await engine.seen())["requests"]
    assert (request["method"], request["path"]) == ("POST", CHAT)
    assert request["headers"]["x-probe"] == "yes"
    assert json.loads(request["body"]) == a_chat("Grüße")


# How it starts and ends


async def test_it_is_ready_when_it_says_so(record_property: Callable[[str, object], None]):
    started = time.monotonic()
    async with FakeEngine() as engine:
        record_property("ready_s", round(time.monotonic() - started, 3))
        assert await status_of(engine) == 200
        assert json.loads(engine.log[-1].removeprefix("ready ")) == {"address": engine.address, "pid": engine.pid}


async def test_it_listens_on_a_port_of_its_choice():
    async with FakeEngine(address="127.0.0.1:0") as engine:
        assert engine.address.startswith("http://127.0.0.1:")
        assert not engine.address.endswith(":0")
        assert await status_of(engine) == 200


async def test_progress_is_told_while_it_loads():
    async with FakeEngine(progress_lines=2, load_log_lines="hello\nworld") as engine:
        stages = [FakeAdapter().read_progress(line) for line in engine.log]
    assert engine.log[:2] == ["hello", "world"]
    assert [stage.fraction for stage in stages if stage] == [0.5, 1.0]


async def test_a_loading_engine_refuses_connections():
    async with FakeEngine(until="spawned", startup_style="refused", startup_s=30) as engine:
        with pytest.raises(aiohttp.ClientConnectorError):
            await status_of(engine)
        assert engine.exit_code is None


async def test_a_loading_engine_answers_503_and_still_tells_tests_what_it_saw():
    async with FakeEngine(until="listening", startup_style="503", startup_s=30) as engine:
        assert await status_of(engine) == 503
        assert "loading" in (await engine.request("POST", CHAT, a_chat()))["error"]["message"]
        assert len((await engine.seen())["requests"]) == 1


async def test_refused_then_503_then_ready(eventually: Eventually):
    told: list[int | str] = []

    async def ready() -> bool:
        try:
            told.append(await status_of(engine))
        except aiohttp.ClientConnectorError:
            told.append("refused")
        return told[-1] == 200

    async with FakeEngine(until="spawned", startup_style="refused-then-503", startup_s=0.4) as engine:
        await eventually(ready)
    assert list(dict.fromkeys(told)) == ["refused", 503, 200]


@pytest.mark.parametrize(
    ("how", "exit_code", "kind"),
    [
        ("bad-flag", 2, "bad_config"),
        ("missing-file", 1, "model"),
        ("damaged-model", 1, "model"),
        ("does-not-fit", 1, "does_not_fit"),
        ("out-of-memory", -9, "out_of_memory"),
        ("crash", 1, "crashed"),
    ],
)
async def test_a_crash_at_the_start_is_explained_by_its_adapter(how: str, exit_code: int, kind: str):
    async with FakeEngine(until="spawned", crash_at_start=how) as engine:
        assert await engine.ended() == exit_code
    signal = -exit_code if exit_code < 0 else None
    report = ExitReport(
        code=None if signal else exit_code,
        signal=signal,
        out_of_memory=how == "out-of-memory",
        tail=tuple(engine.log),
    )
    assert FakeAdapter().explain_failure(report).kind == kind


async def test_waiting_for_an_engine_that_dies_tells_its_last_words():
    with pytest.raises(EngineFailed, match=r"ended with 2: .*unknown setting"):
        async with FakeEngine(crash_at_start="bad-flag"):
            pass


async def test_an_unknown_knob_in_the_file_ends_it_as_a_bad_flag_does(tmp_path: Path):
    replica = ReplicaPlan(
        name="demo-0",
        engine="fake",
        served_name="demo",
        artifact=Artifact(name="demo", format="fake", path="/", sha256="", size_bytes=0, lineage=""),
        max_in_flight=1,
        context_tokens=64,
        settings=(Setting(name="tokenz", value=1, reason="test"),),
    )
    install = Installed(engine="fake", version="", python=sys.executable, root="", lock_sha256="")
    spec = FakeAdapter().launch(replica, install, Addresses(listen=f"unix:{tmp_path}/e", folder=str(tmp_path)))
    for name, content in spec.files.items():
        (tmp_path / name).write_text(content)
    child = await asyncio.create_subprocess_exec(
        *spec.argv, env=spec.environ, cwd=spec.cwd, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await child.communicate()
    report = ExitReport(
        code=child.returncode, signal=None, out_of_memory=False, tail=tuple(output.decode().splitlines())
    )
    failure = FakeAdapter().explain_failure(report)
    assert (failure.kind, failure.cause, failure.permanent) == ("bad_config", "unknown knob: tokenz", True)


async def test_sigterm_ends_it_with_0_and_leaves_no_socket_file():
    async with FakeEngine() as engine:
        engine.terminate()
        assert await engine.ended() == 0
        assert not Path(engine.address.removeprefix("unix:")).exists()


async def test_sigterm_can_be_ignored_and_sigkill_cannot(eventually: Eventually):
    async with FakeEngine(ignore_sigterm=True) as engine:
        engine.terminate()
        await eventually(lambda: "ignoring the signal" in engine.log)
        assert await status_of(engine) == 200
        engine.kill()
        assert await engine.ended() == -9


async def test_it_ends_with_the_process_that_started_it(eventually: Eventually):
    script = (
        "import asyncio, os\n"
        "from modelyard.testing import FakeEngine\n"
        "async def main():\n"
        "    async with FakeEngine() as engine:\n"
        "        print(engine.pid, flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    output, _ = await parent.communicate()
    await eventually(lambda: _state(int(output)) == "gone")


def _state(pid: int) -> str:
    """The kernel's letter for it; a zombie that another parent has not reaped counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0].replace("Z", "gone")
    except FileNotFoundError:
        return "gone"


async def test_it_is_reaped_when_its_block_ends_with_an_error():
    engine = FakeEngine()
    with pytest.raises(ZeroDivisionError):
        async with engine:
            _ = 1 / 0
    assert engine.exit_code == -9


# How it misbehaves


async def test_a_crash_in_the_middle_of_an_answer_sends_what_was_produced_and_no_end():
    async with FakeEngine(crash_after_tokens=2) as engine:
        received = await until_closed(engine, on_the_wire(a_chat(stream=True)))
        assert await engine.ended() == 1
    assert b'"content":" w1"' in received
    assert b'"content":" w2"' not in received
    assert not received.endswith(b"0\r\n\r\n")


async def test_a_poison_prompt_ends_it_and_another_does_not():
    async with FakeEngine(crash_on_text="poison") as engine:
        await engine.request("POST", CHAT, a_chat("water"))
        assert await until_closed(engine, on_the_wire(a_chat("some poison please"))) == b""
        assert await engine.ended() == 1


async def test_a_poison_prompt_may_end_it_in_the_middle_of_the_answer():
    async with FakeEngine(crash_on_text="poison", crash_on_text_after=2) as engine:
        await engine.request("POST", CHAT, a_chat("water"))
        received = await until_closed(engine, on_the_wire(a_chat("some poison please", stream=True)))
        assert await engine.ended() == 1
    assert b'"content":" w1"' in received and b'"content":" w2"' not in received


async def test_a_hung_engine_is_healthy_and_stands_still_until_it_is_let_go(eventually: Eventually):
    async with FakeEngine(hang_after_tokens=3, tokens=5) as engine:
        first = asyncio.create_task(engine.request("POST", CHAT, a_chat()))
        await eventually(lambda: _is_hung(engine))
        second = asyncio.create_task(engine.request("POST", CHAT, a_chat("other")))
        await eventually(lambda: _running(engine, 2))
        before = await metric(engine, "work_done")
        assert await status_of(engine) == 200
        assert await metric(engine, "work_done") == before == 4
        await engine.set(hang_after_tokens=None)
        for answer in await asyncio.gather(first, second):
            assert answer["usage"]["completion_tokens"] == 5


async def _is_hung(engine: FakeEngine) -> bool:
    return (await counters(engine))["hung"]


async def _running(engine: FakeEngine, count: int) -> bool:
    return (await counters(engine))["running"] == count


async def test_a_text_can_hang_it(eventually: Eventually):
    async with FakeEngine(hang_on_text="sleep") as engine:
        await engine.request("POST", CHAT, a_chat("wake"))
        waiting = asyncio.create_task(engine.request("POST", CHAT, a_chat("sleep now")))
        await eventually(lambda: _is_hung(engine))
        await engine.set(hang_on_text="")
        assert (await waiting)["usage"]["completion_tokens"] == 64


async def test_an_engine_hung_with_its_http_answers_nothing_until_it_is_let_go(eventually: Eventually):
    async with FakeEngine(hang_after_tokens=0, healthy_while_hung=False) as engine:
        asking = asyncio.create_task(engine.request("POST", CHAT, a_chat()))
        await eventually(lambda: _is_hung(engine))
        probing = asyncio.create_task(status_of(engine))
        for _ in range(10):
            assert await _is_hung(engine)
        assert not probing.done()
        await engine.set(hang_after_tokens=None)
        assert await probing == 200
        assert (await asking)["choices"]


async def test_a_truncated_stream_is_closed_without_its_end():
    async with FakeEngine(truncate_after_tokens=2) as engine:
        received = await until_closed(engine, on_the_wire(a_chat(stream=True)))
        assert await status_of(engine) == 200
    assert b'"content":" w1"' in received
    assert b"[DONE]" not in received
    assert not received.endswith(b"0\r\n\r\n")


async def test_a_truncated_whole_answer_is_shorter_than_its_length():
    async with FakeEngine(truncate_after_tokens=2) as engine:
        head, _, body = (await until_closed(engine, on_the_wire(a_chat()))).partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    assert 0 < len(body) < length


async def test_a_connection_is_closed_after_its_reply_without_a_word():
    async with FakeEngine(close_keepalive_after_reply=True, tokens=1) as engine:
        received = await until_closed(engine, on_the_wire(a_chat()))
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" not in received.lower()


async def test_a_reused_connection_dies_with_no_byte_of_a_reply():
    async with FakeEngine(close_keepalive_on_reuse=True, tokens=1) as engine:
        reader, writer = await connect(engine)
        writer.write(on_the_wire(a_chat(stream=True)))
        assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.write(on_the_wire(a_chat()))
        assert await reader.read() == b""
        writer.close()
        assert len((await engine.seen())["requests"]) == 1


@pytest.mark.parametrize("slow_read_s", [0, 60])
async def test_a_slow_reader_makes_the_sender_wait(slow_read_s: float):
    async with FakeEngine(slow_read_s=slow_read_s, context_tokens=1_000_000, tokens=1) as engine:
        _, writer = await connect(engine)
        writer.write(on_the_wire(a_chat("word " * 500_000)))
        for _ in range(100):
            await status_of(engine)
        unsent = writer.transport.get_write_buffer_size()
        writer.close() if slow_read_s == 0 else writer.transport.abort()
    assert unsent > 1_000_000 if slow_read_s else unsent == 0


async def test_a_client_that_leaves_frees_the_engine(eventually: Eventually):
    async with FakeEngine(token_interval_s=0.01, tokens=8_000) as engine:
        reader, writer = await connect(engine)
        writer.write(on_the_wire(a_chat(stream=True)))
        await reader.readuntil(b'" w1"')
        writer.close()
        await eventually(lambda: _running(engine, 0))
        assert (await counters(engine))["cancelled"] == 1
        assert (await counters(engine))["served"] == 0


async def test_a_client_that_leaves_during_the_prefill_frees_the_engine(eventually: Eventually):
    async with FakeEngine(prefill_s=60) as engine:
        _, writer = await connect(engine)
        writer.write(on_the_wire(a_chat()))
        await eventually(lambda: _running(engine, 1))
        writer.close()
        await eventually(lambda: _running(engine, 0))


async def test_an_engine_may_go_on_after_its_client_has_left(eventually: Eventually):
    async with FakeEngine(ignore_disconnects=True, token_interval_s=0.005, tokens=30) as engine:
        reader, writer = await connect(engine)
        writer.write(on_the_wire(a_chat(stream=True)))
        await reader.readuntil(b'" w1"')
        writer.close()
        await eventually(lambda: _served(engine, 1))
        assert await metric(engine, "generated_tokens") == 30


async def _served(engine: FakeEngine, count: int) -> bool:
    return (await counters(engine))["served"] == count


async def test_work_advances_during_a_prefill(eventually: Eventually):
    async with FakeEngine(prefill_s=60) as engine:
        asking = asyncio.create_task(engine.request("POST", CHAT, a_chat()))
        await eventually(lambda: _worked(engine, 3))
        assert await metric(engine, "generated_tokens") == 0
        asking.cancel()


async def test_tokens_come_at_their_interval(eventually: Eventually):
    async with FakeEngine(token_interval_s=60) as engine:
        asking = asyncio.create_task(engine.request("POST", CHAT, a_chat()))
        await eventually(lambda: _worked(engine, 1))
        for _ in range(20):
            assert await metric(engine, "generated_tokens") == 0
        asking.cancel()


async def _worked(engine: FakeEngine, steps: int) -> bool:
    return (await metric(engine, "work_done") or 0) >= steps


async def test_requests_beyond_max_sequences_wait_in_their_order(eventually: Eventually):
    async with FakeEngine(max_sequences=1, hang_on_text="stay", tokens=1) as engine:
        finished: list[str] = []

        async def ask(text: str) -> None:
            await engine.request("POST", CHAT, a_chat(text))
            finished.append(text)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask("stay"))
            await eventually(lambda: _is_hung(engine))
            for place, text in enumerate(("second", "third"), start=1):
                group.create_task(ask(text))
                await eventually(lambda wanted=place: _waiting(engine, wanted))
            assert await metric(engine, "running") == 1
            await engine.set(hang_on_text="")
        assert finished == ["stay", "second", "third"]


async def _waiting(engine: FakeEngine, count: int) -> bool:
    return (await counters(engine))["waiting"] == count


async def test_a_knob_that_does_not_exist_or_is_for_the_start_is_refused_at_runtime():
    async with FakeEngine() as engine:
        for change in ({"tokenz": 1}, {"startup_s": 1}, {"tokens": "x"}, []):
            assert "error" in await engine.request("POST", "/fake/knobs", change)
        assert (await engine.request("GET", "/effective"))["tokens"] == 64


async def test_a_frozen_process_answers_again_when_it_is_thawed(eventually: Eventually):
    async with FakeEngine() as engine:
        engine.freeze()
        await eventually(lambda: _state(engine.pid) == "T")
        asking = asyncio.create_task(status_of(engine))
        engine.thaw()
        assert await asking == 200

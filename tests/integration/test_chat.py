"""`modelyard chat` at a terminal and in pipes: a real yard with FakeEngines, and a person who types."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from commands import Command
from modelyard.cli import chat_commands
from modelyard.cli.chat_session import Session, cost
from modelyard.cli.chat_stream import ContextExceeded, Heard, ask
from modelyard.cli.conversation import Conversation
from modelyard.errors import EngineFailed
from modelyard.observe.journal import read_journal
from modelyard.records.listening import Listening
from modelyard.state import StateDirectory
from walkthrough import Terminal, Typed
from yards import processes_of

Eventually = Callable[..., Awaitable[Any]]
FAKE_UP = str(Path(__file__).parents[1] / "fake_up.py")
CHAT = f"{sys.executable} {FAKE_UP} chat"


@pytest.fixture
def command(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    monkeypatch.setenv("MODELYARD_STATE", str(state.root))
    command = Command(state.root, (FAKE_UP,))
    yield command
    command("down")
    assert processes_of(state) == {}


def serve(command: Command, monkeypatch: pytest.MonkeyPatch, **knobs: object) -> None:
    monkeypatch.setenv("MODELYARD_TEST_KNOBS", json.dumps(knobs))
    command("up", "-d", "--port", "0", "--name", "small", "--json", check=True)


def typed(tmp_path: Path, arguments: str, *lines: str) -> list[str]:
    """What a terminal shows while somebody types `lines`; the last one leaves."""
    shown = tuple(f"> {line}" for line in lines)
    code, seen = Terminal(tmp_path, os.environ).run(Typed(1, f"{CHAT} {arguments}", shown))
    assert code == 0, seen
    return seen


def after(seen: list[str], line: str) -> list[str]:
    """What came between a typed line and the next prompt."""
    rest = seen[seen.index(f"> {line}") + 1 :]
    end = next((at for at, one in enumerate(rest) if one.startswith("> ")), len(rest))
    return rest[:end]


def test_a_conversation_at_a_terminal(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serve(command, monkeypatch, tokens=8)
    asked = "What is the capital of Japan?"
    seen = typed(
        tmp_path, "", "hello", asked, "/retry", "/set temperature=0.5", "/tokens", "/sav x", "/system be brief", "/quit"
    )
    assert seen[0] == "talking to small; /help shows what you can do, Ctrl-D ends"
    assert after(seen, "hello")[0] == "w0 w1 w2 w3 w4 w5 w6 w7"
    answer, told = after(seen, asked)
    assert answer == "The capital of Japan is Tokyo."
    assert "tokens" in told and "the first after 0." in told
    assert after(seen, "/retry")[0] == answer
    assert any("temperature" in line and "0.5" in line for line in after(seen, "/set temperature=0.5"))
    assert "of 8192 tokens" in after(seen, "/tokens")[0]
    assert after(seen, "/sav x")[:2] == [
        "error: there is no command /sav",
        "try:   did you mean /save? /help shows all; a message that begins with / needs a space first",
    ]
    assert after(seen, "/system be brief") == ["system message set"]


def test_a_conversation_is_saved_for_its_owner_alone_and_goes_on_later(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve(command, monkeypatch, tokens=8)
    typed(tmp_path, "--temperature 0.5 --max-tokens 2", "hello", "/save talk.json", "/quit")
    saved = tmp_path / "talk.json"
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    kept = json.loads(saved.read_text())
    assert kept["exchanges"] == [{"question": "hello", "answer": "w0 w1"}]
    (tmp_path / "letter.txt").write_text("dear")
    seen = typed(
        tmp_path, "", "/load talk.json", "/set", "/clear", "/save letter.txt", "/load letter.txt", "/load", "/quit"
    )
    assert after(seen, "/load talk.json")[0].startswith("1 exchange")
    assert any(line.split() == ["temperature", "0.5"] for line in after(seen, "/set"))
    assert after(seen, "/save letter.txt")[0].endswith("is there already and holds no conversation")
    assert (tmp_path / "letter.txt").read_text() == "dear"
    assert "is no conversation that /save wrote" in after(seen, "/load letter.txt")[0]
    assert after(seen, "/load")[0] == "error: /load needs the name of a file"


def test_what_is_piped_in_is_asked_once_and_the_answer_is_all_of_the_output(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(command, monkeypatch)
    for arguments, question in (
        (("chat",), b"the capital of\nJapan? The capital of Japan, I mean\n"),
        (("chat", "-m", "the capital of Japan?"), b""),
    ):
        ended = subprocess.run(
            [sys.executable, FAKE_UP, *arguments], env=command.environ, input=question, capture_output=True
        )
        assert (ended.returncode, ended.stdout) == (0, b"The capital of Japan is Tokyo.\n"), ended.stderr
        assert b"tokens, " in ended.stderr and b"Traceback" not in ended.stderr


def test_a_reader_that_has_enough_is_no_failure_to_complain_of(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(command, monkeypatch, tokens=200, token_interval_s=0.005)
    ended = subprocess.run(
        f"{CHAT} -m hello | head -c 5", shell=True, env=command.environ, capture_output=True, text=True
    )
    assert ended.stdout == "w0 w1"
    assert "Traceback" not in ended.stderr and "BrokenPipe" not in ended.stderr


async def test_ctrl_c_stops_the_answer_the_engine_and_not_the_conversation(
    command: Command,
    state: StateDirectory,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    serve(command, monkeypatch, tokens=5000, token_interval_s=0.02)
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    child = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, FAKE_UP, "chat", "--max-tokens", "5000"],
        env={**command.environ, "TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = ""

    def sees(text: str) -> Callable[[], bool]:
        def look() -> bool:
            nonlocal seen
            with suppress(BlockingIOError, OSError):
                seen += os.read(ours, 65536).decode().replace("\r", "")
            return text in seen

        return look

    try:
        await eventually(sees("> "))
        os.write(ours, b"hello\n")
        await eventually(sees("w0 w1 w2"))
        child.send_signal(signal.SIGINT)
        await eventually(sees("(stopped)\n> "), what=seen)
        await eventually(lambda: [one.outcome for one in read_journal(state.journal).records][-1:] == ["client_gone"])
        os.write(ours, b"/tokens\n")
        await eventually(sees("of 8192 tokens"))
        child.send_signal(signal.SIGINT)
        # At the prompt: before it, the terminal reads lines itself, and what Ctrl-D means there is lost.
        await eventually(sees("(Ctrl-D ends)\n> "))
        os.write(ours, b"\x04")
        await eventually(lambda: child.poll() is not None)
        assert child.returncode == 0, seen
    finally:
        child.kill()
        child.wait()
        os.close(ours)


# The client's side alone, against a gateway that says what a real one would not say at once.


@asynccontextmanager
async def gateway(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncGenerator[Listening]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield Listening(pid=1, url=f"http://127.0.0.1:{port}/v1", admin="", started_at=0, version="0")
    finally:
        await runner.cleanup()


def event(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}).encode() + b"\n\n"


def streaming(*events: bytes, status: int = 200) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for one in events:
            await response.write(one)
        return response

    return answer


def refusing(
    status: int, message: str, code: str | None = None
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": message, "code": code}}, status=status)

    return answer


async def heard_from(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> tuple[Heard, list[tuple[str, str]]]:
    heard, pieces = Heard(), list[tuple[str, str]]()
    async with gateway(answer) as where:
        await ask(where, "key", {"model": "small"}, heard, lambda text, kind: pieces.append((kind, text)))
    return heard, pieces


async def test_thoughts_are_told_from_the_answer_under_both_names_that_engines_use() -> None:
    heard, pieces = await heard_from(
        streaming(event(role="assistant"), event(reasoning_content="hm"), event(reasoning=" so"), event(content="yes"))
    )
    assert pieces == [("reasoning", "hm"), ("reasoning", " so"), ("answer", "yes")]
    assert heard.text == "yes"


async def test_tokens_and_times_are_the_engines_count_and_our_clock() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\n'
    heard, _ = await heard_from(streaming(event(content="a"), event(content="b"), usage, b"data: [DONE]\n\n"))
    assert (heard.prompt_tokens, heard.completion_tokens) == (7, 2)
    assert heard.first_token_s is not None and heard.first_token_s > 0


def test_the_cost_of_an_answer_in_words() -> None:
    heard = Heard(completion_tokens=11, asked_at=1.0, first_at=1.5, last_at=3.5)
    assert cost(heard, 512) == "11 tokens, 5 per second, the first after 0.50 s"
    assert (
        cost(Heard(completion_tokens=1, asked_at=1.0, first_at=1.1, last_at=1.1), 512)
        == "1 token, the first after 0.10 s"
    )
    assert cost(Heard(completion_tokens=4, finish_reason="length"), 4) == "4 tokens; cut at max_tokens=4"


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (refusing(503, "small is closed: it loads"), EngineFailed, "small is closed: it loads"),
        (refusing(400, "too long", "context_length_exceeded"), ContextExceeded, "too long"),
        (refusing(400, "the maximum context length is 10 tokens"), ContextExceeded, "maximum context length"),
        (refusing(400, "temperature is wrong"), EngineFailed, "temperature is wrong"),
        (streaming(b"oh", status=502), EngineFailed, "the gateway answered 502"),
        (streaming(event(content="a"), b'data: {"error":{"message":"it died"}}\n\n'), EngineFailed, "it died"),
    ],
)
async def test_what_goes_wrong_is_said_in_the_gateways_words(answer: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        await heard_from(answer)


async def test_nobody_there_is_said_too() -> None:
    nowhere = Listening(pid=1, url="http://127.0.0.1:9/v1", admin="", started_at=0, version="0")
    with pytest.raises(EngineFailed, match="did not answer to the end"):
        await ask(nowhere, "key", {}, Heard(), lambda text, kind: None)


async def test_no_control_character_of_a_model_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    attack = "\x1b]0;owned\x07 \x1b[2J \x9b31m"
    async with gateway(streaming(*(event(content=letter) for letter in attack), event(reasoning=attack))) as where:
        await asyncio.to_thread(session(where).ask, "hi")
    shown = capsys.readouterr().out
    assert "␛]0;owned␇" in shown and "<9B>31m" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b"}


async def test_the_oldest_is_left_out_where_it_does_not_fit_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        counts.append(len((await request.json())["messages"]))
        if counts[-1] > 3:
            return await refusing(400, "too long", "context_length_exceeded")(request)
        return await streaming(event(content="yes"))(request)

    async with gateway(answer) as where:
        talking = session(where)
        for _ in range(2):
            talking.talk = talking.talk.after("a question", "an answer")
        await asyncio.to_thread(talking.ask, "and?")
    assert counts == [5, 3]
    assert len(talking.talk.exchanges) == 3
    assert "(the first exchange no longer fits into 8192 tokens: not sent any more)" in capsys.readouterr().err


async def test_a_question_that_never_fits_is_refused_and_not_kept() -> None:
    async with gateway(refusing(400, "too long", "context_length_exceeded")) as where:
        talking = session(where)
        with pytest.raises(ContextExceeded):
            await asyncio.to_thread(talking.ask, "and?")
        assert talking.talk.exchanges == ()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = Listening(pid=1, url="", admin="", started_at=0, version="0")
    assert chat_commands.run(session(nowhere), "/help") == chat_commands.GO_ON
    shown = capsys.readouterr().out
    assert {name for name, one in chat_commands.COMMANDS.items() if one.does and name not in shown} == set()


def session(where: Listening) -> Session:
    return Session(where, "key", Conversation(deployment="small"), 8192, quietly=False)

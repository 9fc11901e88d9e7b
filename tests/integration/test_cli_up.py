"""`modelyard up` and its exit codes, with FakeEngines behind the real command, yard, control and gateway."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from commands import Command
from modelyard.state import StateDirectory, is_locked
from yards import engine_pids, processes_of

Eventually = Callable[..., Awaitable[Any]]
FAKE_UP = str(Path(__file__).parents[1] / "fake_up.py")


@pytest.fixture
def command(state: StateDirectory) -> Iterator[Command]:
    command = Command(state.root, (FAKE_UP,))
    yield command
    command("down")
    assert processes_of(state) == {}


def with_knobs(monkeypatch: pytest.MonkeyPatch, **knobs: object) -> None:
    monkeypatch.setenv("MODELYARD_TEST_KNOBS", json.dumps(knobs))


def up(command: Command, *arguments: str) -> dict[str, Any]:
    return command("up", "-d", "--port", "0", "--json", *arguments, check=True).lines[-1]


def ask(serving: dict[str, Any], model: str = "smollm2") -> tuple[int, str]:
    """Status, and the answer's or the error's text."""
    with openai.OpenAI(base_url=serving["url"], api_key=serving["key"], max_retries=0, timeout=60) as client:
        try:
            said = client.completions.create(model=model, prompt="hi", max_tokens=4)
        except openai.APIStatusError as error:
            return error.status_code, error.message
        return 200, said.choices[0].text


def test_up_tells_people_seven_steps_and_a_key_that_can_be_copied(command: Command) -> None:
    out = command("up", "-d", "--port", "0", check=True).out
    lines = out.splitlines()
    steps = [line for line in lines if "/7 " in line]
    assert [line.split()[1] for line in steps] == [f"{number}/7" for number in range(1, 8)]
    assert all(line.startswith("✓ ") and line.endswith(" s") for line in steps)
    assert "12 of 12 checks green" in steps[4]
    [key] = [line for line in lines if line.startswith("my_")]
    assert key == key.strip() and " " not in key
    assert "talk       modelyard chat smollm2" in out and "stop       modelyard down" in out
    assert "\x1b" not in out, "no colours and no bars where nobody looks"


def test_a_red_check_is_exit_7_with_what_why_and_what_to_try(
    command: Command, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_knobs(monkeypatch, facts=False)
    ended = command("up", "-d", "--port", "0")
    assert ended.code == 7
    assert "error: verification is red: knowledge-1; the route stays closed" in ended.err
    assert "not proved that the model still answers 'What is the capital of Japan?'" in ended.err
    assert "green needs the answer contains 'Tokyo'" in ended.err
    assert "✗ 5/7 verification" in ended.out
    assert processes_of(state) == {}, "what this command started does not outlive its failure"
    assert not is_locked(state.yard_lock)
    assert "ready {" in command("logs", "smollm2", check=True).out


def test_a_red_deployment_beside_a_green_one_stays_closed_and_says_why(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = up(command)
    with_knobs(monkeypatch, facts=False)
    assert command("up", "-d", "--name", "other").code == 7
    status, answer = ask(serving, "other")
    assert status == 503 and "verification is red: knowledge-1" in answer
    assert ask(serving)[0] == 200
    shown = command("status")
    assert shown.code == 6
    assert shown.out.startswith("closed: other: verification is red: knowledge-1")
    with_knobs(monkeypatch)
    assert command("up", "-d", "--name", "other").code == 0
    assert command("status").code == 0


def test_an_engine_that_cannot_start_is_exit_6_with_its_last_words(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_knobs(monkeypatch, crash_at_start="does-not-fit")
    ended = command("up", "-d", "--port", "0")
    assert ended.code == 6
    assert "does not fit: 3221225472 bytes of KV cache asked for, 1073741824 free" in ended.err
    assert "lower the context or the number of sequences" in ended.err


def test_where_a_running_yard_listens_cannot_be_changed_by_another_up(command: Command) -> None:
    serving = up(command)
    ended = command("up", "-d", "--port", "18999")
    assert ended.code == 2
    assert f"{serving['url']} serves already" in ended.err and "modelyard down" in ended.err


def test_a_taken_port_is_exit_8_and_named(command: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = command("up", "-d", "--port", str(port))
    assert ended.code == 8
    assert f"cannot listen on 127.0.0.1:{port}" in ended.err and "--port" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("up", "no-such-model.yaml"), 2, "no-such-model.yaml:1: cannot be read: No such file or directory"),
        (("up", "--name", "../evil"), 2, "'../evil' cannot be a deployment's name"),
        (("up", "--tls-cert", "/x.pem"), 2, "TLS needs both files"),
        (("up", "--host", "0.0.0.0"), 8, "0.0.0.0 is reachable from other machines, and TLS is missing"),
        (("status",), 9, "nothing is being served from here"),
        (("chat", "-m", "hi"), 9, "nothing is being served from here"),
        (("chat",), 2, "there is nothing to ask"),
        (("chat", "--json"), 2, "there is nothing to ask"),
        (("keys", "list"), 9, "nothing is being served from here"),
        (("keys", "create", "x", "--days", "0"), 2, "a key that has ended already is of no use"),
        (("verify", "x"), 9, "nothing is being served from here"),
        (("logs",), 2, "no engine has said anything yet"),
        (("logs", "x"), 2, "there is no log of 'x'"),
        (("engines", "install", "vlm"), 2, "there is no engine called 'vlm'"),
        (("models", "show", "smolm2"), 2, "did you mean smollm2?"),
        (("plan", "./nothing.gguf"), 2, "neither a model of the catalogue nor a file or folder"),
        (("frobnicate",), 2, "no such command 'frobnicate'"),
        (("stauts",), 2, "did you mean status? modelyard --help"),
        (("keys", "crate"), 2, "did you mean create? modelyard keys --help"),
        (("up", "--pot", "1"), 2, "did you mean --port? modelyard up --help"),
        (("verify",), 2, "missing argument 'name'"),
        (("completion",), 2, "which shell?"),
        (("status", "--watch", "--json"), 2, "--watch is for people"),
        (("engines", "import", "docker ps"), 2, "starts no engine whose flags we know"),
        (("up", "--port", "many"), 2, "invalid value for '--port'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_errors_are_sentences_with_their_exit_code(
    command: Command, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ended = command(*arguments)
    assert ended.code == code, ended
    assert ended.err.startswith("error: ") and said in ended.err
    assert "try:" in ended.err


def test_a_wrong_key_in_a_file_is_exit_2_with_line_and_key(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "modelyard.yaml"
    file.write_text("apiVersion: modelyard/v1\nname: small\nmodel: smollm2\nreplica: 2\n")
    ended = command("up", str(file))
    assert ended.code == 2
    assert f"error: {file}:4: replica: " in ended.err and "replicas" in ended.err


def test_options_win_over_a_file_and_what_they_leave_out_is_the_file_s(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "modelyard.yaml"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file.write_text(f"apiVersion: modelyard/v1\nname: small\nmodel: smollm2\ngateway: {{port: {port}}}\n")
        assert command("up", "-d", str(file)).code == 8
        assert command("up", "-d", "--port", "0", str(file)).code == 0


def test_ctrl_c_in_the_foreground_stops_everything_and_is_no_failure(command: Command, state: StateDirectory) -> None:
    running, said = foreground(command)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (0, ""), said + out
    assert "stopping: requests finish" in out
    assert processes_of(state) == {}


async def test_ctrl_c_before_it_serves_is_exit_130_and_leaves_nothing(
    command: Command, state: StateDirectory, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_knobs(monkeypatch, startup_s=60.0)
    for number in (signal.SIGINT, signal.SIGTERM):
        running = command.start("up", "-d", "--port", "0")
        await eventually(lambda: engine_pids(state))
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
        assert (running.returncode, err) == (130, "error: interrupted\n"), out
        assert processes_of(state) == {}
        assert list(state.deployments.iterdir()) == []


@pytest.mark.parametrize("detached", [(), ("-d",)], ids=["foreground", "detached"])
async def test_up_killed_before_it_serves_takes_everything_along(
    command: Command,
    state: StateDirectory,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    detached: tuple[str, ...],
) -> None:
    with_knobs(monkeypatch, startup_s=60.0)
    running = command.start("up", "--port", "0", *detached)
    await eventually(lambda: engine_pids(state))
    running.kill()
    running.communicate(timeout=60)
    await eventually(lambda: processes_of(state) == {} and not is_locked(state.yard_lock))


async def test_up_killed_while_it_serves_in_the_foreground_takes_everything_along(
    command: Command, state: StateDirectory, eventually: Eventually
) -> None:
    running, _ = foreground(command)
    running.kill()
    running.communicate(timeout=60)
    await eventually(lambda: processes_of(state) == {} and not is_locked(state.yard_lock))
    assert not state.yard.exists()


def test_down_from_elsewhere_ends_a_foreground_up_without_an_error(command: Command) -> None:
    running, _ = foreground(command)
    assert command("down").code == 0
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (0, "")
    assert "stopped by another command" in out


async def test_a_yard_that_dies_ends_a_foreground_up_with_an_error(
    command: Command, state: StateDirectory, eventually: Eventually
) -> None:
    running, _ = foreground(command)
    pid = command("status", "--json").value["serving"]["pid"]
    os.kill(pid, signal.SIGKILL)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 6
    assert "error: the yard ended by itself" in err
    await eventually(lambda: processes_of(state) == {})


def foreground(command: Command) -> tuple[subprocess.Popen[str], str]:
    """An `up` that serves and has said so, and what it said until then. From that line on Ctrl-C is how it ends well;
    what can be seen from outside (an open route, a key) comes a moment earlier."""
    running = command.start("up", "--port", "0")
    assert running.stdout is not None
    said = ""
    while not said.endswith("serving; Ctrl-C stops it\n"):
        line = running.stdout.readline()
        assert line, (said, running.communicate())
        said += line
    return running, said


def test_down_purge_leaves_nothing_of_ours_and_everything_of_others(command: Command, state: StateDirectory) -> None:
    up(command)
    (state.root / "notes.txt").write_text("mine")
    assert command("down", "--purge").out == f"stopped; {state.root} is emptied\n"
    assert [path.name for path in state.root.iterdir()] == ["notes.txt"]
    assert not state.sockets.exists()


def test_two_engines_show_in_status_and_logs(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with_knobs(monkeypatch, replicas=2)
    up(command)
    rows = command("status").out.splitlines()
    assert len([row for row in rows if row.startswith("smollm2 ")]) == 2
    assert {line.split(" | ")[0] for line in command("logs").out.splitlines()} == {"smollm2-0", "smollm2-1"}
    assert " | " not in command("logs", "smollm2-1").out


async def test_following_a_log_ends_with_the_yard(
    command: Command, state: StateDirectory, eventually: Eventually
) -> None:
    up(command)
    following = command.start("logs", "-f")
    command("restart", "smollm2", check=True)
    await eventually(lambda: (state.logs / "smollm2-0.log").read_text().count("ready {") == 2)
    command("down", check=True)
    out, err = following.communicate(timeout=60)
    assert following.returncode == 0 and err == ""
    assert out.count("ready {") == 2

"""`modelyard status` beside a real yard with FakeEngines, and what a service manager hears of `up`."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from commands import Command, Finished
from modelyard.state import StateDirectory
from yards import processes_of

Eventually = Callable[..., Awaitable[Any]]
FAKE_UP = str(Path(__file__).parents[1] / "fake_up.py")


@pytest.fixture
def command(state: StateDirectory) -> Iterator[Command]:
    command = Command(state.root, (FAKE_UP,))
    yield command
    command("down")
    assert processes_of(state) == {}


def up(command: Command, monkeypatch: pytest.MonkeyPatch, *arguments: str, **knobs: object) -> dict[str, Any]:
    monkeypatch.setenv("MODELYARD_TEST_KNOBS", json.dumps(knobs))
    return command("up", "-d", "--port", "0", "--name", "small", "--json", *arguments, check=True).lines[-1]


def ask(serving: dict[str, Any], prompt: str = "hi") -> None:
    with openai.OpenAI(base_url=serving["url"], api_key=serving["key"], max_retries=0, timeout=60) as client:
        client.completions.create(model="small", prompt=prompt, max_tokens=8)


def test_one_sentence_says_that_it_is_well_and_the_table_what_passed_in_the_last_minute(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = up(command, monkeypatch, replicas=2)
    quiet = command("status", check=True).out.splitlines()
    assert quiet[0] == "well: small is open and proved"
    assert "no requests" in quiet[3]
    for _ in range(3):
        ask(serving)
    rows = command("status", check=True).out.splitlines()
    assert "3 requests, 0.4 tok/s" in rows[3] and "12/12 for 7 d" in rows[3]
    assert "requests" not in rows[4], "what is true of the deployment stands once"
    told = command("status", "--json", check=True).value
    assert told["health"] == {"level": "well", "sentence": "well: small is open and proved"}
    assert [(one["requests"], one["failed"]) for one in told["traffic"]] == [(3, 0)]


async def test_requests_that_failed_make_it_degraded_and_say_where_to_look(
    command: Command, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    serving = up(command, monkeypatch, replicas=2, crash_on_text="poison")
    ask(serving)
    with pytest.raises(openai.APIStatusError):
        ask(serving, "poison")

    def served_again() -> Finished | None:
        """The request went to the second replica too, and ended it."""
        shown = command("status")
        return shown if shown.code == 0 else None

    shown = await eventually(served_again, within_s=50)
    sentence, *rest = shown.out.splitlines()
    assert sentence.startswith("degraded: ") and "1 of 2 requests to small failed in the last 60 s" in sentence
    assert any(line.startswith("→ ") and line.endswith(": modelyard logs small") for line in rest)


def test_a_key_that_ends_soon_is_told_of(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    up(command, monkeypatch)
    command("keys", "create", "ada", "--days", "2", check=True)
    out = command("status", check=True).out
    assert out.startswith("well: ") and "→ key 'ada' ends in 2 d: modelyard keys create NAME" in out


async def test_watching_looks_again_until_ctrl_c_and_ends_when_nothing_is_served(
    command: Command, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    up(command, monkeypatch)
    for end in (signal.SIGINT, "down"):
        watching = command.start("status", "--watch")
        assert watching.stdout is not None and watching.stderr is not None
        looks = 0
        while looks < 2:
            looks += watching.stdout.readline().startswith("well: small")
        if isinstance(end, signal.Signals):
            watching.send_signal(end)
            assert watching.wait(30) == 0
        else:
            command("down", check=True)
            assert watching.wait(30) == 9
        watching.communicate()


async def test_a_service_manager_hears_when_the_route_is_open_and_when_it_ends(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MODELYARD_TEST_KNOBS", "{}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        running = command.start("up", "--port", "0", "--name", "small")
        ready = manager.recv(1000).decode()
        assert ready.startswith("READY=1\nSTATUS=serving small at http://127.0.0.1:")
        assert command("status").code == 0
        running.send_signal(signal.SIGTERM)
        assert manager.recv(1000) == b"STOPPING=1"
        running.communicate(timeout=60)

"""`modelyard gateway`: the data plane alone, in front of an engine that it is told about."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway_child import Response, Wire, post

from commands import Command
from modelyard.testing import FakeEngine
from yards import command_of

KEY = "a-key-of-a-client"
PROVIDER_KEY = "sk-provider-0123456789"


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine() as running:
        yield running


@contextmanager
def alone(tmp_path: Path, engine: FakeEngine, *options: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The port of a running gateway, and its process."""
    command = Command(tmp_path / "state")
    upstream = ("--upstream", engine.address, "--model", "m", "--engine-model", "fake")
    gateway = command.start("gateway", *upstream, "--port", "0", "--key", KEY, *options)
    assert gateway.stdout is not None
    try:
        said = gateway.stdout.readline()
        assert said.startswith("listening on http://127.0.0.1:"), gateway.communicate(timeout=30)
        yield int(said.split("/v1")[0].rpartition(":")[2]), gateway
    finally:
        gateway.send_signal(signal.SIGTERM)
        gateway.communicate(timeout=30)


def ask(port: int, path: str, **fields: Any) -> Response:
    with Wire(("127.0.0.1", port)) as wire:
        return wire.ask(post(json.dumps({"model": "m", **fields}).encode(), key=KEY, path=path))


CHAT = {"messages": [{"role": "user", "content": "What is the capital of Japan?"}]}
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/embeddings", {"input": "a b"}),
    ("/v1/rerank", {"query": "a", "documents": ["b", "a"]}),
    ("/tokenize", {"prompt": "a b"}),
    ("/v1/messages/count_tokens", CHAT),
]


async def test_what_it_was_not_told_of_is_answered_with_501(tmp_path: Path, engine: FakeEngine) -> None:
    with alone(tmp_path, engine) as (port, _):
        assert ask(port, "/v1/chat/completions", **CHAT).status == 200
        assert ask(port, "/v1/messages", max_tokens=9, **CHAT).status == 200, "made of a chat"
        for path, fields in OTHERS:
            refused = ask(port, path, **fields)
            assert refused.status == 501
            assert "it has /v1/chat/completions, /v1/completions" in json.loads(refused.body)["error"]["message"]
    seen = [one["path"] for one in (await engine.seen())["requests"]]
    assert seen == ["/v1/chat/completions", "/v1/chat/completions"]


async def test_what_it_was_told_of_passes(tmp_path: Path, engine: FakeEngine) -> None:
    told = [one for path in ("/v1/embeddings", "/v1/rerank", "/tokenize") for one in ("--endpoint", path)]
    with alone(tmp_path, engine, *told) as (port, _):
        assert [ask(port, path, **fields).status for path, fields in OTHERS] == [200] * 4
        assert ask(port, "/v1/chat/completions", **CHAT).status == 501
    seen = [one["path"] for one in (await engine.seen())["requests"]]
    assert seen == ["/v1/embeddings", "/v1/rerank", "/tokenize", "/tokenize"]


async def test_an_engines_key_is_read_by_reference_and_told_to_that_engine_only(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROVIDER_KEY", PROVIDER_KEY)
    state = tmp_path / "kept"
    state.mkdir(mode=0o700)
    given = ("--upstream-key", "env:PROVIDER_KEY", "--state", str(state))
    with alone(tmp_path, engine, *given) as (port, gateway):
        answers = [
            ask(port, "/v1/chat/completions", **CHAT),
            ask(port, "/v1/chat/completions", **CHAT, n=9),
            ask(port, "/v1/embeddings", input="a"),
        ]
        assert [one.status for one in answers] == [200, 400, 501]
        assert PROVIDER_KEY not in command_of(gateway.pid)
    [request] = (await engine.seen())["requests"]
    assert request["headers"]["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert KEY not in str(request)
    written = b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
    assert b"chat/completions" in written
    for text in (written, *(one.body + str(one.headers).encode() for one in answers)):
        assert PROVIDER_KEY.encode() not in text


def test_an_endpoint_that_nobody_has_is_refused_before_anything_listens(tmp_path: Path) -> None:
    ended = Command(tmp_path / "state")(
        *("gateway", "--upstream", "http://127.0.0.1:1", "--model", "m", "--key", "k", "--endpoint", "/v1/images")
    )
    assert ended.code == 2 and "there is no endpoint '/v1/images' here" in ended.err and "/v1/embeddings" in ended.err

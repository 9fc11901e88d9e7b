"""Dialects that an engine speaks itself, through a real gateway: passed as they came, counted as the engine says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from gateway_child import Gateway, Response, deployment, post, replica

from modelyard.state import StateDirectory
from modelyard.testing import FakeEngine
from modelyard.verify import dialect_answers
from modelyard.verify.dialect_answers import Told

Eventually = Callable[..., Awaitable[object]]
MESSAGES, RESPONSES, EMBEDDINGS, RERANK = "/v1/messages", "/v1/responses", "/v1/embeddings", "/v1/rerank"
TOKYO = "The capital of Japan is Tokyo."
QUESTION = "What is the capital of Japan?"
ASKED: dict[str, dict[str, Any]] = {
    MESSAGES: {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 50},
    RESPONSES: {"input": QUESTION},
}


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine() as running:
        yield running


@pytest.fixture
def gateway(state: StateDirectory) -> Iterator[Gateway]:
    with Gateway(state) as running:
        yield running


@pytest.fixture
async def native(gateway: Gateway, engine: FakeEngine, eventually: Eventually) -> Gateway:
    """A deployment `m` whose engine claims all dialects, and `chats` whose engine claims only chat."""
    gateway.publish(
        deployment(replica(engine.address), endpoints=(MESSAGES, RESPONSES, EMBEDDINGS, RERANK)),
        deployment(replica(engine.address), name="chats", endpoints=("/v1/chat/completions",), engine="plain"),
    )

    def is_ready() -> bool:
        with gateway.wire() as wire:
            return wire.ask(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").status == 200

    await eventually(is_ready)
    return gateway


def ask(gateway: Gateway, path: str, model: str = "m", **fields: Any) -> Response:
    with gateway.wire() as wire:
        return wire.ask(post(json.dumps({"model": model, **fields}).encode(), path=path))


READ: dict[str, tuple[Callable[[int, bytes], Told], Callable[[int, bytes], Told]]] = {
    MESSAGES: (dialect_answers.message, dialect_answers.message_stream),
    RESPONSES: (dialect_answers.response, dialect_answers.response_stream),
}


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_an_engine_that_speaks_the_dialect_is_asked_in_it(native: Gateway, engine: FakeEngine, path: str) -> None:
    whole, stream = READ[path]
    first = ask(native, path, **ASKED[path])
    again = ask(native, path, **ASKED[path], stream=True)
    made = ask(native, path, "chats", **ASKED[path])
    told = [whole(first.status, first.body), stream(again.status, again.body), whole(made.status, made.body)]
    assert [one.text for one in told] == [TOKYO] * 3 and len(set(told)) == 1, "translated or not, the same"
    seen = [(one["path"], json.loads(one["body"])["model"]) for one in (await engine.seen())["requests"]]
    assert seen == [(path, "fake"), (path, "fake"), ("/v1/chat/completions", "fake")]
    records = [(one.outcome, one.prompt_tokens, one.completion_tokens, one.usage_source) for one in native.records()]
    assert records == [("complete", told[0].input_tokens, told[0].output_tokens, "engine")] * 3
    assert [one.cached_tokens for one in native.records()] == [0, told[0].input_tokens - 1, told[0].input_tokens - 1]


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_a_stream_of_the_engines_own_that_breaks_is_an_error_and_never_an_end(
    native: Gateway, engine: FakeEngine, path: str
) -> None:
    await engine.set(truncate_after_tokens=2)
    broken = ask(native, path, **ASKED[path], stream=True)
    kinds = [line.removeprefix(b"event: ") for line in broken.body.split(b"\n") if line.startswith(b"event: ")]
    assert kinds[-1] == b"error" and not {b"message_stop", b"response.completed"} & set(kinds)
    assert native.records()[0].outcome == "truncated"


async def test_vectors_and_ranks_pass_where_they_are_claimed_and_elsewhere_name_the_engine(native: Gateway) -> None:
    embedded = ask(native, EMBEDDINGS, input=["a b", "a b"])
    first, second = json.loads(embedded.body)["data"]
    assert embedded.status == 200 and first["embedding"] == second["embedding"]
    ranked = ask(native, RERANK, query="tokyo", documents=["paris", "tokyo"], top_n=1)
    assert [one["index"] for one in json.loads(ranked.body)["results"]] == [1]
    assert [(one.prompt_tokens, one.completion_tokens) for one in native.records()] == [(4, 0), (3, 0)]
    for path, fields in ((EMBEDDINGS, {"input": "a"}), (RERANK, {"query": "a", "documents": ["b"]})):
        refused = ask(native, path, "chats", **fields)
        message = json.loads(refused.body)["error"]["message"]
        assert refused.status == 501 and message.startswith(f"plain, the engine behind 'chats', has no {path}")

"""The official Python clients of OpenAI and Anthropic, unchanged: what they are told is made of an engine's chats."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from gateway_child import KEY, MODEL, Gateway, deployment, replica
from pydantic import BaseModel

from modelyard.records.journal import RequestRecord
from modelyard.records.keys import Limits
from modelyard.state import open_state
from modelyard.testing import FakeEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")
Eventually = Callable[..., Awaitable[object]]

COUNT: Any = [{"role": "user", "content": "count"}]
JAPAN: Any = [{"role": "user", "content": "What is the capital of Japan?"}]
TOKYO = "The capital of Japan is Tokyo."
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "minLength": 3}}, "required": ["city"]}
TOOL: Any = {"name": "weather", "description": "look", "input_schema": SCHEMA}
FUNCTION: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
NATIVE = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/embeddings", "/v1/rerank")


class Weather(BaseModel):
    city: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(tokens=20) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    fake: FakeEngine, tmp_path_factory: pytest.TempPathFactory, eventually: Eventually
) -> AsyncIterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("clients")
    with Gateway(open_state(folder / "state")) as running:
        ready = deployment(replica(fake.address), endpoints=NATIVE, engine="fake")
        closed = deployment(name="closed", open=False, reason="it is starting", retry_after_s=1)
        running.publish(ready, closed)

        def is_ready() -> bool:
            with running.wire() as wire:
                return wire.ask(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").status == 200

        await eventually(is_ready)
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def engine(fake: FakeEngine) -> AsyncIterator[FakeEngine]:
    """With knobs that are turned back afterwards."""
    before = dict(vars(fake.knobs))
    yield fake
    turned = {name: value for name, value in before.items() if getattr(fake.knobs, name) != value}
    if turned:
        await fake.set(**turned)


@asynccontextmanager
async def anthropic_client(gateway: Gateway, **changes: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    settings = {"api_key": KEY, "max_retries": 0, "timeout": 30, **changes}
    async with anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{gateway.port}", **settings) as client:
        yield client


@asynccontextmanager
async def openai_client(gateway: Gateway, **changes: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    settings = {"api_key": KEY, "max_retries": 0, "timeout": 30, **changes}
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", **settings) as client:
        yield client


async def last_record(gateway: Gateway, eventually: Eventually, before: int) -> RequestRecord:
    await eventually(lambda: len(gateway.records()) > before)
    return gateway.records()[-1]


# Anthropic.


def shown(message: anthropic.types.Message) -> list[dict[str, Any]]:
    """Its blocks, as either of the client's ways to ask shows them."""
    return [block.model_dump(exclude={"parsed_output"}) for block in message.content]


async def test_a_message_and_its_usage(gateway: Gateway, engine: FakeEngine) -> None:
    async with anthropic_client(gateway) as client:
        message = await client.messages.create(model=MODEL, max_tokens=50, messages=JAPAN)
        counted = await client.messages.count_tokens(model=MODEL, messages=JAPAN)
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": TOKYO}]
    assert (message.stop_reason, message.role, message.model) == ("end_turn", "assistant", MODEL)
    assert message._request_id and message._request_id.startswith("req_")
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens
    record = next(one for one in gateway.records() if one.request_id == message._request_id)
    assert (record.prompt_tokens, record.completion_tokens) == (counted.input_tokens, usage.output_tokens)


async def test_a_streamed_message_is_the_same_message(gateway: Gateway, engine: FakeEngine) -> None:
    async with anthropic_client(gateway) as client:
        async with client.messages.stream(model=MODEL, max_tokens=50, messages=JAPAN) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        whole = await client.messages.create(model=MODEL, max_tokens=50, messages=JAPAN)
    assert text == TOKYO
    assert shown(final) == shown(whole) and final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


async def test_thoughts_are_thinking_blocks(gateway: Gateway, engine: FakeEngine) -> None:
    await engine.set(thoughts=2)
    async with anthropic_client(gateway) as client:
        whole = await client.messages.create(model=MODEL, max_tokens=50, messages=COUNT)
        async with client.messages.stream(model=MODEL, max_tokens=50, messages=COUNT) as stream:
            streamed = await stream.get_final_message()
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert shown(whole) == shown(streamed)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_tool_is_called_and_its_result_goes_back(gateway: Gateway, engine: FakeEngine, streamed: bool) -> None:
    await engine.set(call_tools=True)
    ask: Any = {"model": MODEL, "max_tokens": 50, "tools": [TOOL]}
    async with anthropic_client(gateway) as client:
        if streamed:
            async with client.messages.stream(**ask, messages=JAPAN) as stream:
                called = await stream.get_final_message()
        else:
            called = await client.messages.create(**ask, messages=JAPAN)
        [use] = called.content
        assert use.type == "tool_use" and (use.name, use.input) == ("weather", {"city": "xxx"})
        assert called.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
        turns: Any = [*JAPAN, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
        answer = await client.messages.create(**ask, messages=turns)
    assert answer.stop_reason == "end_turn"
    sent = (await engine.seen())["requests"][-1]["body"]
    assert '"role":"tool"' in sent and "sunny" in sent


@pytest.mark.parametrize(
    ("key", "fields", "error"),
    [
        ("my_0123456789ab_wrong", {}, anthropic.AuthenticationError),
        (KEY, {"model": "nobody"}, anthropic.NotFoundError),
        (KEY, {"extra_body": {"temperature": 9}}, anthropic.BadRequestError),
        (KEY, {"model": "closed"}, anthropic.InternalServerError),
    ],
)
async def test_anthropics_errors_are_typed(
    gateway: Gateway, key: str, fields: Any, error: type[anthropic.APIStatusError]
) -> None:
    async with anthropic_client(gateway, api_key=key) as client:
        with pytest.raises(error) as caught:
            await client.messages.create(**{"model": MODEL, "max_tokens": 5, "messages": JAPAN, **fields})
    body: Any = caught.value.body
    assert body["type"] == "error" and body["error"]["message"] and caught.value.request_id


async def test_a_token_is_a_key_too(gateway: Gateway) -> None:
    async with anthropic_client(gateway, api_key=None, auth_token=KEY) as client:
        assert (await client.messages.create(model=MODEL, max_tokens=5, messages=JAPAN)).content


async def test_a_message_stream_that_breaks_raises(gateway: Gateway, engine: FakeEngine) -> None:
    await engine.set(truncate_after_tokens=3)
    async with anthropic_client(gateway) as client:
        with pytest.raises(anthropic.APIStatusError, match="before it was complete"):
            async with client.messages.stream(model=MODEL, max_tokens=50, messages=COUNT) as stream:
                await stream.get_final_message()


# OpenAI.


async def test_a_response_and_its_usage(gateway: Gateway, engine: FakeEngine) -> None:
    async with openai_client(gateway) as client:
        response = await client.responses.create(model=MODEL, input=JAPAN[0]["content"], store=False)
    assert (response.output_text, response.status) == (TOKYO, "completed")
    assert response.usage is not None and response.usage.output_tokens > 0
    record = next(one for one in gateway.records() if one.request_id == response._request_id)
    assert (record.prompt_tokens, record.completion_tokens) == (
        response.usage.input_tokens,
        response.usage.output_tokens,
    )


async def test_a_streamed_response_is_the_same_response(gateway: Gateway, engine: FakeEngine) -> None:
    await engine.set(thoughts=2)
    async with openai_client(gateway) as client:
        async with client.responses.stream(model=MODEL, input="count") as stream:
            text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
            final = await stream.get_final_response()
        whole = await client.responses.create(model=MODEL, input="count")
    assert text == final.output_text == whole.output_text
    assert [item.type for item in final.output] == ["reasoning", "message"]


async def test_a_response_of_a_schema_is_parsed(gateway: Gateway, engine: FakeEngine) -> None:
    async with openai_client(gateway) as client:
        response = await client.responses.parse(model=MODEL, input="where?", text_format=Weather)
    assert isinstance(response.output_parsed, Weather)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_function_is_called_and_its_output_goes_back(
    gateway: Gateway, engine: FakeEngine, streamed: bool
) -> None:
    await engine.set(call_tools=True)
    async with openai_client(gateway) as client:
        if streamed:
            async with client.responses.stream(model=MODEL, input="weather?", tools=[FUNCTION]) as stream:
                called: Any = await stream.get_final_response()
        else:
            called = await client.responses.create(model=MODEL, input="weather?", tools=[FUNCTION])
        [call] = called.output
        assert (call.type, call.name, call.arguments) == ("function_call", "weather", '{"city": "xxx"}')
        turns: Any = [{"role": "user", "content": "weather?"}, call.to_dict()]
        turns.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
        answer = await client.responses.create(model=MODEL, input=turns, tools=[FUNCTION])
    assert answer.output_text
    assert "sunny" in (await engine.seen())["requests"][-1]["body"]


async def test_thoughts_of_a_chat_have_both_names_where_the_engine_is_known_to_tell_them(
    gateway: Gateway, engine: FakeEngine, eventually: Eventually
) -> None:
    await engine.set(thoughts=2)
    thinking = deployment(replica(engine.address), name="thinking", reasoning_field="reasoning_content")
    others = [
        deployment(replica(engine.address), endpoints=NATIVE, engine="fake"),
        deployment(name="closed", open=False, retry_after_s=1),
    ]
    gateway.publish(*others, thinking)
    async with openai_client(gateway) as client:

        async def known() -> bool:
            return any(model.id == "thinking" for model in (await client.models.list()).data)

        await eventually(known)
        stream = await client.chat.completions.create(model="thinking", messages=COUNT, stream=True)
        deltas: list[Any] = [chunk.choices[0].delta async for chunk in stream if chunk.choices]
    thoughts = [delta.reasoning for delta in deltas if hasattr(delta, "reasoning")]
    assert "".join(thoughts) == "w0 w1"
    assert thoughts == [delta.reasoning_content for delta in deltas if hasattr(delta, "reasoning_content")]


async def test_texts_are_embedded_and_a_deployment_that_cannot_says_so(gateway: Gateway) -> None:
    async with openai_client(gateway) as client:
        found = await client.embeddings.create(model=MODEL, input=["a b", "a b", "c"])
        one, same, other = (item.embedding for item in found.data)
        assert one == same != other and found.usage.prompt_tokens == 5
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="nobody", input="a")


async def test_a_response_stream_that_breaks_raises(gateway: Gateway, engine: FakeEngine) -> None:
    await engine.set(truncate_after_tokens=3)
    async with openai_client(gateway) as client:
        with pytest.raises(openai.APIError, match="before it was complete"):
            async with client.responses.stream(model=MODEL, input="count") as stream:
                await stream.get_final_response()


@pytest.mark.parametrize(
    ("key", "fields", "error"),
    [
        ("my_0123456789ab_wrong", {}, openai.AuthenticationError),
        (KEY, {"model": "nobody"}, openai.NotFoundError),
        (KEY, {"previous_response_id": "resp_1"}, openai.BadRequestError),
        (KEY, {"model": "closed"}, openai.InternalServerError),
    ],
)
async def test_openais_errors_are_typed(
    gateway: Gateway, key: str, fields: Any, error: type[openai.APIStatusError]
) -> None:
    async with openai_client(gateway, api_key=key) as client:
        with pytest.raises(error) as caught:
            await client.responses.create(**{"model": MODEL, "input": "hi", **fields})
    assert caught.value.request_id and caught.value.code


# Both: limits, retries, deadlines, leaving.


async def test_a_key_at_its_limit_is_told_so_in_both_dialects(gateway: Gateway, eventually: Eventually) -> None:
    secret = "my_00000000feed_limited"
    gateway.add_key(secret, limits=Limits(requests_per_minute=2))
    async with anthropic_client(gateway, api_key=secret) as one, openai_client(gateway, api_key=secret) as other:

        async def known() -> bool:
            try:
                return bool((await one.messages.create(model=MODEL, max_tokens=5, messages=JAPAN)).content)
            except anthropic.AuthenticationError:
                return False  # the key log is followed ten times a second

        await eventually(known)
        await other.responses.create(model=MODEL, input="hi", max_output_tokens=5)
        with pytest.raises(anthropic.RateLimitError) as of_anthropic:
            await one.messages.create(model=MODEL, max_tokens=5, messages=JAPAN)
        with pytest.raises(openai.RateLimitError) as of_openai:
            await other.responses.create(model=MODEL, input="hi", max_output_tokens=5)
    for caught in (of_anthropic, of_openai):
        assert int(caught.value.response.headers["retry-after"]) > 0
    body: Any = of_anthropic.value.body
    assert body["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("dialect", ["anthropic", "openai"])
async def test_what_is_unavailable_is_asked_again_as_often_as_the_client_was_told(
    gateway: Gateway, dialect: str
) -> None:
    before = len(gateway.records())
    with pytest.raises((anthropic.InternalServerError, openai.InternalServerError)):
        if dialect == "anthropic":
            async with anthropic_client(gateway, max_retries=1) as client:
                await client.messages.create(model="closed", max_tokens=5, messages=JAPAN)
        else:
            async with openai_client(gateway, max_retries=1) as client:
                await client.responses.create(model="closed", input="hi")
    first, second = gateway.records()[before:]
    assert (first.status, second.status) == (503, 503)
    assert second.at - first.at >= 1, "Retry-After was honoured"


@pytest.mark.parametrize("dialect", ["anthropic", "openai"])
async def test_a_client_whose_deadline_passes_stops_the_engine(
    gateway: Gateway, engine: FakeEngine, eventually: Eventually, dialect: str
) -> None:
    await engine.set(prefill_s=60)
    before = len(gateway.records())
    with pytest.raises((anthropic.APITimeoutError, openai.APITimeoutError)):
        if dialect == "anthropic":
            async with anthropic_client(gateway, timeout=0.2) as client:
                await client.messages.create(model=MODEL, max_tokens=5, messages=JAPAN)
        else:
            async with openai_client(gateway, timeout=0.2) as client:
                await client.responses.create(model=MODEL, input="hi")
    assert (await last_record(gateway, eventually, before)).outcome == "client_gone"

    async def stopped() -> bool:
        return (await engine.seen())["counters"]["running"] == 0

    await eventually(stopped)


@pytest.mark.parametrize("dialect", ["anthropic", "openai"])
async def test_a_client_that_closes_its_stream_stops_the_engine(
    gateway: Gateway, engine: FakeEngine, eventually: Eventually, dialect: str
) -> None:
    await engine.set(token_interval_s=0.05, tokens=2000)
    before = len(gateway.records())
    if dialect == "anthropic":
        async with (
            anthropic_client(gateway) as client,
            client.messages.stream(model=MODEL, max_tokens=5000, messages=COUNT) as stream,
        ):
            await anext(aiter(stream.text_stream))
    else:
        async with openai_client(gateway) as client, client.responses.stream(model=MODEL, input="count") as events:
            await anext(event async for event in events if event.type == "response.output_text.delta")
    record = await last_record(gateway, eventually, before)
    assert record.outcome == "client_gone" and record.usage_source == "estimated"

"""A replica dies in the middle of a stream, and another one goes on: what the client has stays as it is, nothing is
lost or doubled, and it is counted once."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import (
    DONE,
    LAST_CHUNK,
    MODEL,
    STREAM_HEAD,
    FakeTransport,
    World,
    chat,
    chunked,
    deployment,
    post,
    split_responses,
)
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.budget import Budget
from modelyard.gateway.fields import parse
from modelyard.gateway.resumption import Said, can_be_resumed, rest_of, said_in
from modelyard.gateway.upstream import UpstreamConnection
from modelyard.records.topology import Failover, Replica

PROMPT_TOKENS = 5


class Writer:
    """An engine of the test: it answers with these texts, each a token; it goes on from the text in its request."""

    def __init__(self, number: int, texts: list[str], *, reason: str = "stop", chat: bool = True) -> None:
        self.texts, self.reason, self.chat = texts, reason, chat
        self.common = {"id": f"answer-{number}", "created": 100 + number, "model": "e"}

    def event(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if self.chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        return self._line({**self.common, "choices": [choice]})

    def opening(self) -> list[bytes]:
        return [self.event({"role": "assistant", "content": ""})] if self.chat else []

    def _line(self, value: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(value).encode() + b"\n\n"

    def whole(self, body: bytes) -> list[bytes]:
        """The events of its answer to a request."""
        asked = json.loads(body)
        said = asked["messages"][-1]["content"] if asked.get("continue_final_message") else ""
        if not self.chat:
            said = asked["prompt"].removeprefix("begin")
        told, left = 0, list(self.texts)
        while said and left and said.startswith(left[0]):
            said, told = said[len(left.pop(0)) :], told + 1
        assert not said, f"it cannot go on from {asked}"
        most = asked.get("max_tokens", len(self.texts))
        now, reason = left[:most], "length" if len(left) > most else self.reason
        usage = {"prompt_tokens": PROMPT_TOKENS + told, "completion_tokens": len(now)}
        usage["total_tokens"] = sum(usage.values())
        events = [*self.opening(), *(self.event({"content": text}) for text in now), self.event({}, reason)]
        return [*events, self._line({**self.common, "choices": [], "usage": usage}), DONE]


class Served:
    """Three replicas that answer alike; the request that the last of them got is in `body`. However many of them die,
    it is not suspected."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        names = ["r0", "r1", "r2"]
        replicas = tuple(Replica(name=name, launch=name, address=f"unix:/{name}", max_in_flight=4) for name in names)
        failover = Failover(**{"on_broken_stream": "resume", "poison_deaths": 0, **policy})
        self.world = World(folder, shape=deployment(replicas=replicas, failover=failover, continues_chat=True))
        admission = self.world.worker.admissions[MODEL]
        admission.retries = Budget(at=admission.retries.at, tokens=10.0)
        self.engines = [self.world.engine(name) for name in names]
        self.client, self.to_client = self.world.client()

    def ask(self, *, path: str = "/v1/chat/completions", body: bytes | None = None, **fields: Any) -> None:
        asked = body or chat(**{"stream": True, "temperature": 0, **fields})
        self.client.data_received(post(asked, path=path))

    def asked(self) -> tuple[UpstreamConnection, FakeTransport, bytes]:
        """The engine that has got a request, and the request's body."""
        for engine, transport in self.engines:
            if data := transport.take():
                return engine, transport, data.partition(b"\r\n\r\n")[2]
        raise AssertionError("no engine was asked")

    def told(self) -> bytes:
        [(status, _, body)] = split_responses(self.to_client.take())
        assert status == 200
        return body


def values(body: bytes) -> list[dict[str, Any]]:
    """The events of a whole stream, which ends as it should."""
    *events, last, nothing = body.split(b"\n\n")
    assert (last, nothing) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data:")) for event in events]


def text_of(found: list[dict[str, Any]]) -> str:
    choices = [choice for value in found for choice in value["choices"]]
    return "".join(
        (choice["delta"].get("content") or "") if "delta" in choice else choice["text"] for choice in choices
    )


# Words, blanks on their own, and tokens that end in one.
tokens = st.lists(st.sampled_from(["Hello", " world", "\n", "\n\n", " ", "x ", "usage", '"error"', "é"]), min_size=1)


@given(
    texts=tokens,
    deaths=st.lists(st.integers(0, 12), min_size=1, max_size=2),
    ask_usage=st.booleans(),
    max_tokens=st.one_of(st.none(), st.integers(1, 12)),
    is_chat=st.booleans(),
    version=st.sampled_from(["1.0", "1.1"]),
)
def test_wherever_replicas_die_the_client_gets_the_same_answer(
    texts: list[str], deaths: list[int], ask_usage: bool, max_tokens: int | None, is_chat: bool, version: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        served = Served(Path(folder))
        options: dict[str, Any] = {"stream_options": {"include_usage": True}} if ask_usage else {}
        if not is_chat:
            max_tokens = max_tokens or 12
            options |= {"prompt": "begin"}
        if max_tokens is not None:
            options["max_tokens"] = max_tokens
        path = "/v1/chat/completions" if is_chat else "/v1/completions"
        request = {"model": MODEL, "stream": True, "temperature": 0, **options}
        if is_chat:
            request["messages"] = [{"role": "user", "content": "hello"}]
        raw = post(json.dumps(request).encode(), path=path)
        served.client.data_received(raw.replace(b"HTTP/1.1", b"HTTP/" + version.encode(), 1))
        delivered = b""
        for number, death in enumerate([*deaths, None]):
            engine, transport, body = served.asked()
            events = Writer(number, texts, chat=is_chat).whole(body)
            if death is None or death >= len(events):
                engine.data_received(STREAM_HEAD + chunked(*events) + LAST_CHUNK)
                break
            engine.data_received(STREAM_HEAD)
            for event in events[:death]:
                engine.data_received(chunked(event))
            before = bytes(served.to_client.written)
            assert before.startswith(delivered), "what was sent stays as it was"
            delivered = before
            transport.lose()
            assert bytes(served.to_client.written) == before, "nothing more yet"
        received = served.to_client.take()
        [record] = served.world.records()
    assert received.startswith(delivered)
    body = received.partition(b"\r\n\r\n")[2] if version == "1.0" else split_responses(received)[0][2]
    found = values(body)
    wanted = texts[: max_tokens or len(texts)]
    assert text_of(found) == "".join(wanted)
    assert len({(value["id"], value["created"]) for value in found}) == 1, "one answer has one id"
    choices = [value["choices"][0] for value in found if value["choices"]]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert reasons == ["length" if len(texts) > len(wanted) else "stop"] or reasons == ["length"] * (
        max_tokens == len(texts)
    )
    assert sum("role" in choice.get("delta", {}) for choice in choices) == is_chat
    usages = [value["usage"] for value in found if value.get("usage")]
    assert len(usages) == ask_usage
    assert (record.outcome, record.prompt_tokens, record.completion_tokens) == ("complete", PROMPT_TOKENS, len(wanted))
    assert record.usage_source == "engine"
    for usage in usages:
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (PROMPT_TOKENS, len(wanted))
        assert usage["total_tokens"] == PROMPT_TOKENS + len(wanted)
    assert record.attempts == len(record.tried) + 1
    assert record.resumed <= len(record.tried)


TEXTS = ["one", " two", " three", " four"]


def begin(served: Served, count: int = 2, **fields: Any) -> bytes:
    """An answer of which `count` tokens came before its replica died. Returns what the client has by then."""
    served.ask(**fields)
    engine, transport, body = served.asked()
    engine.data_received(STREAM_HEAD)
    for event in Writer(0, TEXTS).whole(body)[: count + 1]:
        engine.data_received(chunked(event))
    before = bytes(served.to_client.written)
    transport.lose()
    return before


def is_cut_short(served: Served, before: bytes) -> bool:
    """What was sent, then an error event, and the end."""
    received = served.to_client.take()
    [(status, _, body)] = split_responses(received)
    last = body.rstrip().rpartition(b"\n\n")[2]
    assert status == 200 and received.startswith(before) and b"[DONE]" not in body
    return b'"code":"truncated"' in last and served.to_client.closed


def finish(served: Served, number: int = 1) -> bytes:
    engine, _, body = served.asked()
    engine.data_received(STREAM_HEAD + chunked(*Writer(number, TEXTS).whole(body)) + LAST_CHUNK)
    return served.told()


def test_the_other_replica_is_asked_to_go_on_with_what_was_said(tmp_path: Path) -> None:
    served = Served(tmp_path)
    begin(served, max_tokens=10, seed=7)
    engine, _, body = served.asked()
    asked = json.loads(body)
    assert asked["messages"][-1] == {"role": "assistant", "content": "one two"}
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
    assert (asked["max_tokens"], asked["seed"]) == (8, 7)
    engine.data_received(STREAM_HEAD + chunked(*Writer(1, TEXTS).whole(body)) + LAST_CHUNK)
    assert text_of(values(served.told())) == "one two three four"
    [record] = served.world.records()
    assert (record.resumed, [one.kind for one in record.tried], record.attempts) == (1, ["failed"], 2)
    assert (record.prompt_tokens, record.completion_tokens) == (PROMPT_TOKENS, 4)
    assert record.replica != record.tried[0].replica


def test_a_deployment_that_wants_an_error_gets_one(tmp_path: Path) -> None:
    served = Served(tmp_path, on_broken_stream="error")
    assert is_cut_short(served, begin(served))
    assert served.world.records()[0].resumed == 0


def test_where_no_other_replica_is_left_the_stream_ends_with_an_error(tmp_path: Path) -> None:
    served = Served(tmp_path)
    for name in ("r1", "r2"):
        served.world.worker.admissions[MODEL].seats[name].refusing = True
    assert is_cut_short(served, begin(served))


def test_without_budget_a_stream_ends_with_an_error(tmp_path: Path) -> None:
    served = Served(tmp_path, retry_share=0.0, retries_per_s=0.0)
    admission = served.world.worker.admissions[MODEL]
    admission.retries = Budget(at=admission.retries.at)
    assert is_cut_short(served, begin(served))


@pytest.mark.parametrize("status", [400, 500, 503])
def test_an_engine_that_will_not_go_on_ends_the_stream_with_an_error(tmp_path: Path, status: int) -> None:
    served = Served(tmp_path, sendings=2)
    before = begin(served)
    engine, _, _ = served.asked()
    engine.data_received(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % status)
    assert is_cut_short(served, before)
    assert [(one.outcome, one.resumed) for one in served.world.records()] == [("truncated", 1)]


def test_an_engine_that_answers_plainly_instead_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    served = Served(tmp_path, sendings=2)
    before = begin(served)
    engine, _, _ = served.asked()
    engine.data_received(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
    assert is_cut_short(served, before)


def full(served: Served) -> None:
    """Every other replica has no seat free: going on must wait."""
    for name in ("r1", "r2"):
        seats = served.world.worker.admissions[MODEL].seats[name]
        seats.in_flight = seats.replica.max_in_flight


def test_a_client_that_leaves_while_its_stream_waits_is_noted(tmp_path: Path) -> None:
    served = Served(tmp_path)
    full(served)
    begin(served)
    served.to_client.lose()
    [record] = served.world.records()
    assert (record.outcome, record.status, record.usage_source) == ("client_gone", 200, "estimated")
    assert not served.world.worker.admissions[MODEL].queue


def test_a_gateway_that_stops_while_a_stream_waits_says_so(tmp_path: Path) -> None:
    served = Served(tmp_path)
    full(served)
    begin(served)
    served.client.stop()
    [(_, _, body)] = split_responses(served.to_client.take())
    assert b'"code":"gateway_stopped"' in body


def test_waiting_for_a_replica_to_go_on_has_an_end(tmp_path: Path) -> None:
    served = Served(tmp_path)
    full(served)
    before = begin(served)
    served.world.worker.admissions[MODEL].expire(float("inf"))
    assert is_cut_short(served, before)


def test_a_stop_text_that_may_have_begun_is_not_risked(tmp_path: Path) -> None:
    served = Served(tmp_path)
    assert is_cut_short(served, begin(served, stop=["two three"]))
    other = Served(tmp_path)
    begin(other, stop=["three two"])
    assert b"four" in finish(other)


def test_more_than_we_hold_is_not_resumed(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.ask()
    engine, transport, body = served.asked()
    writer = Writer(0, ["x" * 1_000_000] * 9)
    engine.data_received(STREAM_HEAD)
    for event in writer.whole(body)[:-3]:
        engine.data_received(chunked(event))
    before = bytes(served.to_client.written)
    transport.lose()
    assert is_cut_short(served, before)


def test_what_was_held_back_and_never_sent_is_not_gone_on_from(tmp_path: Path) -> None:
    """The first replica says its role and dies; the second one dies in the middle; the third one goes on."""
    served = Served(tmp_path)
    served.ask()
    for number, count in ((0, 1), (1, 3)):
        engine, transport, body = served.asked()
        engine.data_received(STREAM_HEAD)
        for event in Writer(number, TEXTS).whole(body)[:count]:
            engine.data_received(chunked(event))
        transport.lose()
    found = values(finish(served, 2))
    assert {value["id"] for value in found} == {"answer-1"} and text_of(found) == "".join(TEXTS)
    [record] = served.world.records()
    assert (record.resumed, len(record.tried)) == (1, 2)


RESUMED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True, "seed": 1}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("changes", "resumed"),
    [
        ({}, True),
        ({"seed": None, "temperature": 0}, True),
        ({"seed": None}, False),
        ({"seed": None, "temperature": 0.7}, False),
        ({"n": 2}, False),
        ({"n": 1}, True),
        ({"tools": [TOOL]}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"response_format": {"type": "text"}}, True),
        ({"logprobs": True}, False),
        ({"frequency_penalty": 0.5}, False),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, False),
        ({"stream": False}, False),
    ],
)
def test_only_plain_text_without_chance_is_resumed(changes: dict[str, Any], resumed: bool) -> None:
    call = parse(json.dumps({**RESUMED, **changes}).encode(), "/v1/chat/completions").call
    able = deployment(continues_chat=True)
    assert can_be_resumed(call, "/v1/chat/completions", able) is resumed
    assert not can_be_resumed(call, "/v1/chat/completions", deployment(continues_chat=False))


@pytest.mark.parametrize(
    ("changes", "resumed"),
    [
        ({}, True),
        ({"max_tokens": None}, False),
        ({"prompt": [1, 2]}, False),
        ({"echo": True}, False),
        ({"suffix": "x"}, False),
    ],
)
def test_of_completions_only_a_text_with_a_limit_is_resumed(changes: dict[str, Any], resumed: bool) -> None:
    fields = {"model": MODEL, "prompt": "x", "max_tokens": 5, "seed": 1, "stream": True, **changes}
    call = parse(json.dumps(fields).encode(), "/v1/completions").call
    assert can_be_resumed(call, "/v1/completions", deployment()) is resumed


@pytest.mark.parametrize(
    "delta",
    [{"reasoning_content": "hm"}, {"reasoning": "hm"}, {"refusal": "no"}, {"tool_calls": [{"index": 0}]}],
)
def test_what_is_more_than_text_is_not_gone_on_from(delta: dict[str, Any]) -> None:
    event = b"data: " + json.dumps({"id": "a", "choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"
    assert said_in(event) is None
    assert said_in(b"data: not json\n\n") is None


def test_an_answer_that_was_sent_in_full_only_lacks_its_end() -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 2}).encode()
    rest = rest_of(body, "/v1/completions", Said(text=" a b", tokens=2))
    assert rest is not None and rest.only_end
    assert json.loads(rest.body) == {"prompt": "x a b", "max_tokens": 1}

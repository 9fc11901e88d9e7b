"""Asking a running replica at its own address: requests in, strictly parsed OpenAI answers out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import aiohttp
import msgspec

from modelyard.errors import ModelyardError
from modelyard.records.base import Record, decode

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
Endpoint = Literal["/v1/chat/completions", "/v1/completions"]
# A check asks for a few dozen tokens: more bytes than this is a runaway engine.
MAX_ANSWER_BYTES = 1024 * 1024

T = TypeVar("T")


class WrongAnswer(ModelyardError):
    """The replica answered something that the protocol does not allow; the message says what came."""


class Unreachable(ModelyardError):
    """Nothing listens at the replica's address."""


class Usage(Record):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    def __str__(self) -> str:
        return f"{self.prompt_tokens}+{self.completion_tokens}={self.total_tokens} tokens"


class _Message(Record):
    content: str


class _Choice(Record):
    finish_reason: Literal["stop", "length"]
    message: _Message | None = None
    text: str | None = None


class _Answer(Record):
    object: Literal["chat.completion", "text_completion"]
    choices: tuple[_Choice]
    usage: Usage


class _Delta(Record):
    content: str | None = None


class _ChunkChoice(Record):
    delta: _Delta = _Delta()
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(Record):
    """`choices` has no default: an error in the middle of a stream must not pass for an empty chunk."""

    choices: tuple[_ChunkChoice, ...]
    usage: Usage | None = None


class _Fault(Record):
    message: str
    type: str


class _FaultBody(Record):
    error: _Fault


@dataclass(frozen=True, slots=True)
class Output:
    """What one request brought. `usage` is None only for a stream that reported none."""

    text: str
    finish_reason: str
    usage: Usage | None

    def __str__(self) -> str:
        return f"{quoted(self.text)}, finish_reason {self.finish_reason}, {self.usage or 'no usage'}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a request was refused: `message` and `kind` are of the OpenAI error body, empty where there was none."""

    status: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Replica:
    """One running engine; `model` is the name that the engine itself answers to."""

    model: str
    context_tokens: int
    _session: aiohttp.ClientSession

    async def chat(self, prompt: str, max_tokens: int, **fields: object) -> Output:
        """The whole answer to one user message at temperature 0."""
        return _unary(*await self._post(CHAT, self._chat(prompt, max_tokens, fields)))

    async def chat_stream(self, prompt: str, max_tokens: int, **fields: object) -> Output:
        """The same question, its events put together again."""
        return _streamed(*await self._post(CHAT, self._chat(prompt, max_tokens, fields) | _STREAMED))

    async def complete(self, prompt: str, max_tokens: int, **fields: object) -> Output:
        """The whole continuation of a raw prompt at temperature 0."""
        return _unary(*await self._post(COMPLETION, self._completion(prompt, max_tokens, fields)))

    async def complete_stream(self, prompt: str, max_tokens: int, **fields: object) -> Output:
        return _streamed(*await self._post(COMPLETION, self._completion(prompt, max_tokens, fields) | _STREAMED))

    async def refusal(self, path: Endpoint, body: bytes) -> Refusal:
        """How the replica takes a request that it must refuse."""
        status, answer = await self._send(path, body)
        try:
            fault = _parsed(answer, _FaultBody).error
        except WrongAnswer:
            return Refusal(status, "", "")
        return Refusal(status, fault.type, fault.message)

    def _chat(self, prompt: str, max_tokens: int, fields: dict[str, object]) -> dict[str, object]:
        messages = [{"role": "user", "content": prompt}]
        return {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **fields}

    def _completion(self, prompt: str, max_tokens: int, fields: dict[str, object]) -> dict[str, object]:
        return {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **fields}

    async def _post(self, path: str, body: dict[str, object]) -> tuple[int, bytes]:
        return await self._send(path, msgspec.json.encode(body))

    async def _send(self, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            async with self._session.post(path, data=body, headers={"content-type": "application/json"}) as response:
                return response.status, await _read_bounded(response)
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(f"nothing answers at the replica's address: {error.strerror or error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise WrongAnswer(f"the connection broke: {type(error).__name__}: {error}") from error


_STREAMED: dict[str, object] = {"stream": True, "stream_options": {"include_usage": True}}


@asynccontextmanager
async def connect(address: str, model: str, context_tokens: int) -> AsyncGenerator[Replica]:
    """The replica at `unix:/path` or `http://host:port`. Every request gets a connection of its own, so that a check
    never judges what the check before it left behind."""
    if address.startswith("unix:"):
        connector: aiohttp.BaseConnector = aiohttp.UnixConnector(address.removeprefix("unix:"), force_close=True)
        base_url = "http://replica"
    else:
        connector, base_url = aiohttp.TCPConnector(force_close=True), address
    # Deadlines belong to the checks; aiohttp's own default of five minutes would hide them.
    unlimited = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        base_url, connector=connector, timeout=unlimited, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield Replica(model, context_tokens, session)


def quoted(text: str, limit: int = 120) -> str:
    """`text` fit for a terminal and a record: escaped, bounded."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    received = bytearray()
    async for part in response.content.iter_any():
        received += part
        if len(received) > MAX_ANSWER_BYTES:
            raise WrongAnswer(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(received)


def _unary(status: int, body: bytes) -> Output:
    _expect_ok(status, body)
    answer = _parsed(body, _Answer)
    choice = answer.choices[0]
    text = choice.message.content if choice.message else choice.text
    if text is None or (choice.message is None) != (answer.object == "text_completion"):
        raise WrongAnswer(f"a {answer.object} without its text: {quoted(body.decode(errors='replace'))}")
    return Output(text, choice.finish_reason, answer.usage)


def _streamed(status: int, body: bytes) -> Output:
    _expect_ok(status, body)
    *events, last = _events(body) or [b""]
    if last != b"[DONE]":
        raise WrongAnswer("the stream ended without [DONE]")
    chunks = [_parsed(event, _Chunk) for event in events]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    finish_reasons = [choice.finish_reason for choice in choices if choice.finish_reason is not None]
    if len(finish_reasons) != 1:
        raise WrongAnswer(f"a stream with {len(finish_reasons)} finish reasons instead of one")
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    text = "".join(choice.delta.content or choice.text or "" for choice in choices)
    return Output(text, finish_reasons[0], usages[-1] if usages else None)


def _events(body: bytes) -> Sequence[bytes]:
    lines = body.replace(b"\r\n", b"\n").split(b"\n")
    return [line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:")]


def _expect_ok(status: int, body: bytes) -> None:
    if status != 200:
        raise WrongAnswer(f"HTTP {status}: {quoted(body.decode(errors='replace'), 200)}")


def _parsed(body: bytes, kind: type[T]) -> T:
    try:
        return decode(body, kind)
    except (ModelyardError, RecursionError) as error:
        reason = error.__cause__ or error
        raise WrongAnswer(f"not an OpenAI answer: {reason}: {quoted(body.decode(errors='replace'))}") from error

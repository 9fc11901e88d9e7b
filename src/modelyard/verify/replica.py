"""Asking a running replica at its own address."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import aiohttp
import msgspec

from modelyard.errors import ModelyardError
from modelyard.verify import answers
from modelyard.verify.answers import Output, Refusal, WrongAnswer

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
Endpoint = Literal["/v1/chat/completions", "/v1/completions"]
# A check asks for a few dozen tokens: more bytes than this is a runaway engine.
MAX_ANSWER_BYTES = 1024 * 1024


class Unreachable(ModelyardError):
    """Nothing listens at the replica's address."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One running engine; `model` is the name that the engine itself answers to."""

    model: str
    context_tokens: int
    _session: aiohttp.ClientSession

    async def chat(self, prompt: str, max_tokens: int, **fields: object) -> Output:
        """The whole answer to one user message at temperature 0."""
        return answers.whole(*await self._post(CHAT, self._chat(prompt, max_tokens, fields)))

    async def chat_stream(self, prompt: str, max_tokens: int, **fields: object) -> Output:
        """The same question, its events put together again."""
        return answers.streamed(*await self._post(CHAT, self._chat(prompt, max_tokens, fields) | _STREAMED))

    async def complete(self, prompt: str, max_tokens: int, **fields: object) -> Output:
        """The whole continuation of a raw prompt at temperature 0."""
        return answers.whole(*await self._post(COMPLETION, self._completion(prompt, max_tokens, fields)))

    async def complete_stream(self, prompt: str, max_tokens: int, **fields: object) -> Output:
        return answers.streamed(*await self._post(COMPLETION, self._completion(prompt, max_tokens, fields) | _STREAMED))

    async def ask(self, path: str, fields: Mapping[str, object]) -> tuple[int, bytes]:
        """Status and body of a request to another endpoint."""
        return await self._post(path, {"model": self.model, **fields})

    async def refusal(self, path: Endpoint, body: bytes) -> Refusal:
        """How the replica takes a request that it must refuse."""
        return answers.refusal(*await self._send(path, body))

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


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    received = bytearray()
    async for part in response.content.iter_any():
        received += part
        if len(received) > MAX_ANSWER_BYTES:
            raise WrongAnswer(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(received)

"""An OpenAI-compatible server for any GGUF file: `python llamacpp_server.py --config FILE.json`.

llama.cpp's own server, in a process of its own (llamacpp_engine.py), computes and speaks OpenAI's format; this process
stands in front of it and adds what it lacks (llamacpp_wire.py says what and why): work ends when its client leaves,
names and fields are checked, the queue is bounded, every error has OpenAI's shape.

Contract. stdout carries one line per event: `progress {JSON}` while loading, `ready {JSON of effective settings}`
once, `error: CAUSE` before a failure; stderr is llama.cpp's own log. The socket listens before the load; until `ready`
every route answers 503. Exit 2: the configuration is wrong (one line on stderr); exit 1: the engine failed or died; 0:
SIGTERM. SIGTERM finishes nothing: whoever sends it has drained first. If either process ends, the other ends at once.
Routes: /health /effective /metrics (llama.cpp's own) /v1/models /v1/chat/completions /v1/completions /tokenize
/detokenize.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import llamacpp_upstream as upstream
import llamacpp_wire as wire
import tokenize_wire
from http1 import BadRequest, Reply, Request, error_body
from llamacpp_config import SOCKET, ServerConfig
from openai_wire import model_list
from two_processes import Computing, main, program_beside, serve

_DEFERRED = re.compile(r"^(llamacpp:requests_deferred )\d+$", re.MULTILINE)
_LOST = "the engine broke off this answer; try again"


class Server:
    """`effective` is None until the engine is ready; `_tools` is whether the model's template has a place for them."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._started = int(time.time())
        self._slots = asyncio.Semaphore(config.max_sequences)
        self._in_flight = self._waiting = 0
        self._tools = False
        self._vocabulary = 0
        self.effective: dict[str, Any] | None = None
        self.stopping = asyncio.Event()
        self._routes: dict[tuple[str, str], Callable[[Request, Reply], Awaitable[None]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/effective"): self._effective,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/v1/models"): self._models,
            ("POST", wire.CHAT): self._answer,
            ("POST", wire.COMPLETION): self._answer,
            ("POST", tokenize_wire.TOKENIZE): self._tokenize,
            ("POST", tokenize_wire.DETOKENIZE): self._detokenize,
        }

    async def handle(self, request: Request, reply: Reply) -> None:
        if self.stopping.is_set() or self.effective is None:
            self._unavailable(reply, "stopping" if self.stopping.is_set() else "loading")
            return
        route = self._routes.get((request.method, request.path))
        if route is None:
            known = any(path == request.path for _, path in self._routes)
            raise BadRequest(
                f"no route {request.method} {request.path}",
                status=405 if known else 404,
                code="method_not_allowed" if known else "not_found",
            )
        try:
            await route(request, reply)
        except upstream.Lost as error:
            print(f"lost: {request.method} {request.path}: {error}", flush=True)
            raise BadRequest(_LOST, status=502, code="engine_lost") from error

    def _unavailable(self, reply: Reply, status: str) -> None:
        body = {**error_body(503, f"the engine is {status}", None, f"engine_{status}"), "status": status}
        reply.json(503, body, {"retry-after": "1"})

    async def engine_ready(self, effective: dict[str, Any]) -> None:
        """Raises Lost."""
        async with upstream.ask(SOCKET, "GET", "/props") as answer:
            template: dict[str, Any] = json.loads(await answer.body())["chat_template_caps"]
        self._tools = bool(template["supports_tools"])
        async with upstream.ask(SOCKET, "GET", "/v1/models") as answer:
            self._vocabulary = int(json.loads(await answer.body())["data"][0]["meta"]["n_vocab"])
        self.effective = effective

    async def _health(self, request: Request, reply: Reply) -> None:
        """llama-server's own /health answers although its loop hangs; its metrics come from that loop."""
        status, _ = await self._engines_metrics()
        if status == 200:
            reply.json(200, {"status": "ok"})
        else:
            self._unavailable(reply, "not answering")

    async def _effective(self, request: Request, reply: Reply) -> None:
        reply.json(200, self.effective)

    async def _metrics(self, request: Request, reply: Reply) -> None:
        """llama.cpp's own, but for the requests that wait: they wait here."""
        status, text = await self._engines_metrics()
        shown = _DEFERRED.sub(rf"\g<1>{self._waiting}", text.decode())
        reply.text(status, shown, "text/plain; version=0.0.4; charset=utf-8")

    async def _engines_metrics(self) -> tuple[int, bytes]:
        async with upstream.ask(SOCKET, "GET", "/metrics") as answer:
            return answer.status, await answer.body()

    async def _models(self, request: Request, reply: Reply) -> None:
        reply.json(200, model_list(self._config.served_name, self._started))

    async def _tokenize(self, request: Request, reply: Reply) -> None:
        """A chat is written out first: then its tokens are those that an answer would begin with."""
        count = tokenize_wire.parse_tokenize(request.body, self._config.served_name)
        text, special = count.text, count.special
        if text is None:
            wire.check_messages(count.messages, count.tools, tools_known=self._tools)
            text = (await self._plain("/apply-template", wire.template_fields(count)))["prompt"]
            special = True
        found = await self._plain("/tokenize", {**wire.TOKENIZE_FIELDS, "content": text, "add_special": special})
        tokens, strings = wire.read_tokens(found)
        shown = strings if count.strings else None
        reply.json(200, tokenize_wire.counted(tokens, self._config.context_tokens, shown))

    async def _detokenize(self, request: Request, reply: Reply) -> None:
        tokens = tokenize_wire.parse_detokenize(request.body, self._config.served_name)
        if bad := next((token for token in tokens if token >= self._vocabulary), None):
            raise BadRequest(f"token id {bad} is outside the vocabulary of {self._vocabulary}", param="tokens")
        reply.json(200, {"prompt": (await self._plain("/detokenize", {"tokens": tokens}))["content"]})

    async def _plain(self, path: str, fields: dict[str, Any]) -> dict[str, Any]:
        """llama-server's answer to a request that needs no slot. Raises BadRequest, Lost."""
        async with upstream.ask(SOCKET, "POST", path, json.dumps(fields).encode()) as answer:
            body = await answer.body(upstream.MAX_TOKENS_BYTES)
            if answer.status != 200:
                raise wire.refusal(answer.status, body)
        return json.loads(body)

    async def _answer(self, request: Request, reply: Reply) -> None:
        """One request to its end; cancelling this closes the engine's connection, and its slot is free."""
        ask = wire.parse_ask(request.body, request.path, self._config.served_name, tools=self._tools)
        if self._in_flight >= self._config.max_sequences + self._config.max_queued:
            raise BadRequest("the engine's queue is full", status=503, code="queue_full", retry_after_s=1)
        self._in_flight += 1
        try:
            async with self._slot(), upstream.ask(SOCKET, "POST", ask.path, ask.body) as answer:
                if answer.status != 200:
                    raise wire.refusal(answer.status, await answer.body())
                await (_relay(ask, answer, reply) if ask.stream else _put_together(ask, answer, reply))
        finally:
            self._in_flight -= 1

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncGenerator[None]:
        """A place in the engine. In its own queue a request would stay there, and be begun, after its client left."""
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()


async def _relay(ask: wire.Ask, answer: upstream.Answer, reply: Reply) -> None:
    """Its events as they come, without those that we asked for and the client did not."""
    events, last = wire.Events(), b""
    async for piece in answer.pieces():
        for event in events.feed(piece):
            if wire.is_progress(event) or (wire.is_usage(event) and not ask.include_usage):
                continue
            if wire.is_error(event) and not reply.started:
                raise wire.refusal(500, event)
            if not reply.started:
                reply.start()
            await reply.send(b"data: %b\n\n" % event)
            last = event
    if last != wire.DONE:
        # After an error of its own nothing more is said; a cut connection without [DONE] tells that it is not whole.
        raise upstream.Lost("the stream ended without its end marker")
    reply.finish()


async def _put_together(ask: wire.Ask, answer: upstream.Answer, reply: Reply) -> None:
    events, whole = wire.Events(), wire.Whole(chat=ask.path == wire.CHAT)
    async for piece in answer.pieces():
        for event in events.feed(piece):
            if wire.is_error(event):
                raise wire.refusal(500, event)
            if not wire.is_progress(event) and event != wire.DONE:
                whole.add(event)
    try:
        reply.json(200, whole.answer())
    except ValueError as error:
        raise upstream.Lost(str(error)) from error


async def run(config: ServerConfig, config_path: str) -> int:
    """Serve until the engine process ends or a signal comes; returns the exit code."""
    server = Server(config)

    async def start() -> Computing:
        arguments = ["--config", config_path, "--parent", str(os.getpid())]
        engine = await asyncio.create_subprocess_exec(
            *(sys.executable, program_beside("llamacpp_engine.py"), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return Computing("engine", engine, _hear(server, engine))

    return await serve(server.handle, config.address, server.stopping, start)


async def _hear(server: Server, engine: asyncio.subprocess.Process) -> str:
    """Pass on what the engine process says until it ends; returns the cause that it named, if any."""
    assert engine.stdout is not None
    cause = ""
    async for line in engine.stdout:
        text = line.decode(errors="replace").rstrip()
        kind, _, value = text.partition(" ")
        if kind == "error:":
            cause = value
            continue
        if kind == "ready":
            await server.engine_ready(json.loads(value))
        print(text, flush=True)
    return cause


if __name__ == "__main__":
    main("llama.cpp", ServerConfig.load, run)

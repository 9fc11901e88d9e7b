"""An OpenAI-compatible HTTP server for OpenVINO GenAI: `python openvino_server.py --config FILE.json`.

Two processes. This one speaks HTTP and never touches the engine; the other (openvino_stepper.py) owns the model and
steps it. `step()` holds the interpreter lock for a whole forward pass, up to 0.9 s in a long prefill at 512 prompt
tokens a step: one process would answer neither /health nor a leaving client in that time.

Contract. stdout carries one line per event: `progress {JSON}` while loading, `ready {JSON of effective settings}`
once, `error: CAUSE` before a failure. The socket listens before the load; until `ready` every route but /metrics
answers 503. Exit 2: the configuration is wrong (one line on stderr); exit 1: the engine failed or died; 0: SIGTERM.
SIGTERM finishes nothing: whoever sends it has drained first. If either process ends, the other ends at once.
Routes: /health /effective /metrics /v1/models /v1/chat/completions /v1/completions /tokenize /detokenize.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import tokenize_wire
from http1 import BadRequest, Reply, Request, error_body, sse
from openai_wire import DONE, Answer, Ask, Usage, chat_messages, model_list, parse_ask
from openvino_channel import FrameReader, frame
from openvino_config import ServerConfig
from openvino_metrics import render_metrics
from two_processes import Computing, main, program_beside, serve

_OUT_OF_KV = "the engine ran out of KV cache memory and dropped this request; try again or ask for fewer tokens"


class Flight(asyncio.Future[None]):
    """One request in the stepping process: writes what comes back and is done when the answer is."""

    def __init__(self, reply: Reply, ask: Ask, served_name: str) -> None:
        super().__init__()
        self._reply = reply
        self._ask = ask
        self._answer = Answer(ask, served_name)
        self._text = ""

    def show(self, text: str) -> None:
        if not self._ask.stream:
            self._text += text
            return
        self._open()
        self._reply.push(self._answer.text(text))

    def _open(self) -> None:
        if not self._reply.started:
            self._reply.start()
            if opening := self._answer.opening():
                self._reply.push(opening)

    def end(self, reason: str, usage: Usage) -> None:
        if reason == "exhausted":
            self.fail(BadRequest(_OUT_OF_KV, status=503, code="kv_cache_exhausted"))
            return
        if self._ask.stream:
            self._open()
            self._reply.push(self._answer.closing(reason))
            if self._ask.include_usage:
                self._reply.push(self._answer.usage(usage))
            self._reply.push(DONE)
            self._reply.finish()
        else:
            self._reply.json(200, self._answer.whole(self._text, reason, usage))
        self._settle()

    def fail(self, refusal: BadRequest) -> None:
        if self._reply.started:
            # An error event, then a cut connection without [DONE]: a truncated stream must not look whole.
            self._reply.push(sse(error_body(refusal.status, str(refusal), refusal.param, refusal.code)))
        if not self.done():
            self.set_exception(refusal)

    def _settle(self) -> None:
        if not self.done():
            self.set_result(None)


class Stepping(asyncio.Protocol):
    """The stepping process as seen from here: its pipe, its last word, and the requests it works on."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._default_sampling = {"temperature": config.default_temperature, "top_p": config.default_top_p}
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._last_number = 0
        self._busy_since = 0.0
        self._lookups: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.flights: dict[int, Flight] = {}
        self.effective: dict[str, Any] | None = None
        self.stats: dict[str, Any] = {}
        self.last_step_at: float | None = None
        self.failure: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._act(message)

    def _act(self, message: dict[str, Any]) -> None:
        kind = message.pop("kind")
        if kind == "step":
            self._step(message)
        elif kind == "refused":
            refusal = BadRequest(message["message"], param=message["param"], code=message["code"])
            if flight := self.flights.get(message["id"]):
                flight.fail(refusal)
            elif (lookup := self._lookups.get(message["id"])) and not lookup.done():
                lookup.set_exception(refusal)
        elif kind in ("counted", "read"):
            if (lookup := self._lookups.get(message["id"])) and not lookup.done():
                lookup.set_result(message)
        elif kind == "progress":
            print("progress", json.dumps(message), flush=True)
        elif kind == "ready":
            self.effective = message["effective"]
            print("ready", json.dumps(self.effective), flush=True)
        elif kind == "failed":
            self.failure = message["cause"]

    def _step(self, message: dict[str, Any]) -> None:
        stats = message["stats"]
        if stats["steps"] != self.stats.get("steps"):
            self.last_step_at = time.monotonic()
        self.stats = stats
        for number, text in message["texts"]:
            if flight := self.flights.get(number):
                flight.show(text)
        for number, reason, prompt, completion, cached in message["done"]:
            if flight := self.flights.get(number):
                flight.end(reason, Usage(prompt, completion, cached))

    async def serve(self, ask: Ask, reply: Reply) -> None:
        """Run one request to its end; cancelling this frees its seat and its KV blocks in the engine."""
        if len(self.flights) >= self._config.max_sequences + self._config.max_queued:
            raise BadRequest("the engine's queue is full", status=503, code="queue_full", retry_after_s=1)
        self._last_number += 1
        number = self._last_number
        if not self.flights:
            self._busy_since = time.monotonic()
        flight = self.flights[number] = Flight(reply, ask, self._config.served_name)
        wanted = {
            "op": "submit",
            "id": number,
            **ask.prompt,
            "param": ask.param,
            "sampling": {**self._default_sampling, **ask.sampling},
            "stop": ask.stop,
            "max_tokens": ask.max_tokens,
            "schema": ask.schema,
            "quiet": not ask.stream,
        }
        self._send(wanted)
        try:
            await flight
        except asyncio.CancelledError:
            self._send({"op": "cancel", "id": number})
            raise
        finally:
            del self.flights[number]

    async def look_up(self, op: str, param: str, **fields: Any) -> dict[str, Any]:
        """What the tokenizer over there says: it answers between two steps. Raises BadRequest."""
        if len(self._lookups) >= self._config.max_sequences + self._config.max_queued:
            raise BadRequest("the engine's queue is full", status=503, code="queue_full", retry_after_s=1)
        self._last_number += 1
        number = self._last_number
        lookup = self._lookups[number] = asyncio.get_running_loop().create_future()
        self._send({"op": op, "id": number, "param": param, **fields})
        try:
            return await lookup
        finally:
            del self._lookups[number]

    def _send(self, message: dict[str, Any]) -> None:
        assert self._transport is not None
        self._transport.write(frame(message))

    def step_age_s(self) -> float | None:
        return None if self.last_step_at is None else time.monotonic() - self.last_step_at

    def stalled(self) -> bool:
        """Requests are there, and no step has ended for `stall_s` since the later of the last step and their coming."""
        since = max(self._busy_since, self.last_step_at or 0.0)
        return bool(self.flights) and time.monotonic() - since > self._config.stall_s


class Server:
    def __init__(self, config: ServerConfig, stepping: Stepping) -> None:
        self._config = config
        self._stepping = stepping
        self._started = int(time.time())
        self.stopping = asyncio.Event()
        self._routes: dict[tuple[str, str], Callable[[Request, Reply], Awaitable[None]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/effective"): self._effective,
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completion,
            ("POST", tokenize_wire.TOKENIZE): self._tokenize,
            ("POST", tokenize_wire.DETOKENIZE): self._detokenize,
        }

    async def handle(self, request: Request, reply: Reply) -> None:
        if (request.method, request.path) == ("GET", "/metrics"):
            text = render_metrics(self._stepping.stats, self._stepping.effective, self._stepping.step_age_s())
            reply.text(200, text, "text/plain; version=0.0.4; charset=utf-8")
            return
        status = self._status()
        if status in ("loading", "stopping"):
            self._unavailable(reply, status)
            return
        route = self._routes.get((request.method, request.path))
        if route is None:
            known = any(path == request.path for _, path in self._routes)
            raise BadRequest(
                f"no route {request.method} {request.path}",
                status=405 if known else 404,
                code="method_not_allowed" if known else "not_found",
            )
        await route(request, reply)

    def _status(self) -> str:
        if self.stopping.is_set():
            return "stopping"
        if self._stepping.effective is None:
            return "loading"
        return "stalled" if self._stepping.stalled() else "ok"

    def _unavailable(self, reply: Reply, status: str) -> None:
        body = {**error_body(503, f"the engine is {status}", None, f"engine_{status}"), "status": status}
        reply.json(503, body, {"retry-after": "1"})

    async def _health(self, request: Request, reply: Reply) -> None:
        status = self._status()
        if status == "ok":
            reply.json(200, {"status": "ok"})
        else:
            self._unavailable(reply, status)

    async def _effective(self, request: Request, reply: Reply) -> None:
        reply.json(200, self._stepping.effective)

    async def _models(self, request: Request, reply: Reply) -> None:
        reply.json(200, model_list(self._config.served_name, self._started))

    async def _chat(self, request: Request, reply: Reply) -> None:
        await self._stepping.serve(parse_ask(request.body, chat=True, served_name=self._config.served_name), reply)

    async def _completion(self, request: Request, reply: Reply) -> None:
        await self._stepping.serve(parse_ask(request.body, chat=False, served_name=self._config.served_name), reply)

    async def _tokenize(self, request: Request, reply: Reply) -> None:
        count = tokenize_wire.parse_tokenize(request.body, self._config.served_name)
        if count.tools:
            raise BadRequest("tools is not supported by this server", param="tools", code="unsupported_parameter")
        flags = {"special": count.special, "opening": count.opening, "strings": count.strings}
        if count.text is None:
            said = {"messages": chat_messages(count.messages)}
            found = await self._stepping.look_up("count", "messages", **said, **flags)
        else:
            found = await self._stepping.look_up("count", "prompt", text=count.text, **flags)
        context_tokens = self._config.context_tokens
        reply.json(200, tokenize_wire.counted(found["tokens"], context_tokens, found["strings"]))

    async def _detokenize(self, request: Request, reply: Reply) -> None:
        tokens = tokenize_wire.parse_detokenize(request.body, self._config.served_name)
        found = await self._stepping.look_up("read", "tokens", tokens=tokens)
        reply.json(200, {"prompt": found["text"]})


async def run(config: ServerConfig, config_path: str) -> int:
    """Serve until the stepping process ends or a signal comes; returns the exit code."""
    stepping = Stepping(config)
    server = Server(config, stepping)

    async def start() -> Computing:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = ["--config", config_path, "--pipe", str(theirs.fileno()), "--parent", str(os.getpid())]
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, program_beside("openvino_stepper.py"), *arguments),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
            )
        await asyncio.get_running_loop().create_unix_connection(lambda: stepping, sock=ours)
        return Computing("stepping", child, _last_word(stepping, child))

    return await serve(server.handle, config.address, server.stopping, start)


async def _last_word(stepping: Stepping, child: asyncio.subprocess.Process) -> str:
    await child.wait()
    return stepping.failure or ""


if __name__ == "__main__":
    main("OpenVINO GenAI", ServerConfig.load, run)

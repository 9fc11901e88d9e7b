"""The HTTP that a FakeEngine speaks: an engine's paths, and `/fake/...` for tests. Standard library only."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict

import http1
import tokenize_wire
from http1 import BadRequest, Reply, Request
from modelyard.testing import fake_vectors
from modelyard.testing.fake_dialects import MessageEvents, ResponseEvents, read_message, read_response
from modelyard.testing.fake_knobs import Knobs, read_object
from modelyard.testing.fake_model import FakeModel, Job
from modelyard.testing.fake_openai import Ask, Shapes, read_chat, read_completion, text_of

SEEN_REQUESTS = 100
REMEMBERED_PROMPTS = 1000


class Routes:
    """Leads each request to its answer; owns the knobs, the model and what was seen."""

    def __init__(self, knobs: Knobs) -> None:
        self.knobs = knobs
        self.loading = True
        self.connections = 0
        self.weights = bytearray()
        self._model = FakeModel(knobs)
        self._seen: deque[dict[str, object]] = deque(maxlen=SEEN_REQUESTS)
        self._prompts: set[tuple[str, str]] = set()
        self._vocabulary: dict[str, int] = {}
        self._answered = 0
        self._routes: dict[tuple[str, str], Callable[[Request, Reply], Awaitable[None] | None]] = {
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/effective"): self._effective,
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completion,
            ("POST", "/v1/messages"): self._message,
            ("POST", "/v1/responses"): self._response,
            ("POST", tokenize_wire.TOKENIZE): self._tokenize,
            ("POST", tokenize_wire.DETOKENIZE): self._detokenize,
            ("POST", "/v1/embeddings"): self._embeddings,
            ("POST", "/v1/rerank"): self._rerank,
            ("POST", "/fake/knobs"): self._turn,
            ("GET", "/fake/seen"): self._tell_seen,
        }

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request (an http1.Handler)."""
        if request.path.startswith(("/v1/", "/tokenize", "/detokenize")):
            self._remember(request)
        if not request.path.startswith("/fake/"):
            await self._be_unwell(request)
        route = self._routes.get((request.method, request.path))
        if route is None:
            known = any(path == request.path for _, path in self._routes)
            raise BadRequest("wrong method" if known else f"no such path: {request.path}", status=405 if known else 404)
        if (answering := route(request, reply)) is not None:
            await answering

    async def _be_unwell(self, request: Request) -> None:
        if self.loading and not (self.knobs.defect == "ready" and request.path == "/health"):
            raise BadRequest("the model is loading", status=503)
        if not self.knobs.healthy_while_hung:
            await self._model.not_hung.wait()

    def _remember(self, request: Request) -> None:
        body = request.body.decode(errors="replace")
        self._seen.append(
            {"method": request.method, "path": request.path, "headers": dict(request.headers), "body": body}
        )

    def _health(self, request: Request, reply: Reply) -> None:
        reply.json(200, {"status": "ok"})

    def _effective(self, request: Request, reply: Reply) -> None:
        reply.json(200, asdict(self.knobs))

    def _models(self, request: Request, reply: Reply) -> None:
        model = {"id": self.knobs.served_name, "object": "model", "created": 0, "owned_by": "modelyard"}
        reply.json(200, {"object": "list", "data": [{**model, "max_model_len": self.knobs.context_tokens}]})

    def _metrics(self, request: Request, reply: Reply) -> None:
        now, defect = self._model.counters, self.knobs.defect
        capacity = self.knobs.context_tokens * self.knobs.max_sequences
        samples: dict[tuple[str, str], float] = {
            ("requests_running", "gauge"): now.running,
            ("requests_waiting", "gauge"): now.waiting if defect != "metrics-load" else 0,
            ("steps_total", "counter"): now.steps,
            ("generation_tokens_total", "counter"): now.generation_tokens * (2 if defect == "token-counts" else 1),
            ("prompt_tokens_total", "counter"): now.prompt_tokens,
            ("cached_prompt_tokens_total", "counter"): now.cached_prompt_tokens,
            ("kv_cache_usage_ratio", "gauge"): min(1.0, now.tokens_held / capacity) if capacity else 0.0,
        }
        if defect == "metrics":
            del samples["kv_cache_usage_ratio", "gauge"]
        text = "".join(
            f"# TYPE modelyard_engine_{name} {kind}\nmodelyard_engine_{name} {value}\n"
            for (name, kind), value in samples.items()
        )
        reply.text(200, text, "text/plain; version=0.0.4; charset=utf-8")

    async def finish_running(self) -> None:
        """Wait until no answer is produced any more."""
        await self._model.until_idle()

    def hang(self) -> None:
        """Produce nothing any more, while everything else goes on."""
        self._model.not_hung.clear()

    def _turn(self, request: Request, reply: Reply) -> None:
        try:
            self.knobs = self.knobs.turned(read_object(request.body))
        except ValueError as error:
            raise BadRequest(str(error)) from None
        self._model.turn(self.knobs)
        reply.json(200, asdict(self.knobs))

    def _tell_seen(self, request: Request, reply: Reply) -> None:
        counters = {
            **asdict(self._model.counters),
            "connections": self.connections,
            "hung": not self._model.not_hung.is_set(),
        }
        reply.json(200, {"requests": list(self._seen), "counters": counters})

    async def _chat(self, request: Request, reply: Reply) -> None:
        await self._answer(read_chat(request.body, self.knobs), reply)

    async def _completion(self, request: Request, reply: Reply) -> None:
        await self._answer(read_completion(request.body, self.knobs), reply)

    async def _message(self, request: Request, reply: Reply) -> None:
        ask = read_message(request.body, self.knobs)
        job = self._job(ask)
        await self._tell(MessageEvents(ask, self._answered, job.cached_tokens, self.knobs.defect), job, reply)

    async def _response(self, request: Request, reply: Reply) -> None:
        ask = read_response(request.body, self.knobs)
        job = self._job(ask)
        await self._tell(ResponseEvents(ask, self._answered, job.cached_tokens, self.knobs.defect), job, reply)

    def _tokenize(self, request: Request, reply: Reply) -> None:
        count = tokenize_wire.parse_tokenize(request.body, self.knobs.served_name)
        words = (text_of(count.messages) if count.text is None else count.text).split()
        tokens = [self._vocabulary.setdefault(word, len(self._vocabulary)) for word in words]
        shown = words if count.strings else None
        if self.knobs.defect == "tokenize":
            tokens = tokens[1:]
        reply.json(200, tokenize_wire.counted(tokens, self.knobs.context_tokens, shown))

    def _detokenize(self, request: Request, reply: Reply) -> None:
        words = list(self._vocabulary)
        tokens = tokenize_wire.parse_detokenize(request.body, self.knobs.served_name)
        if any(token >= len(words) for token in tokens):
            raise BadRequest("no such token", param="tokens")
        reply.json(200, {"prompt": " ".join(words[token] for token in tokens)})

    def _embeddings(self, request: Request, reply: Reply) -> None:
        reply.json(200, fake_vectors.embeddings(read_object(request.body)))

    def _rerank(self, request: Request, reply: Reply) -> None:
        reply.json(200, fake_vectors.rerank(read_object(request.body)))

    def _job(self, ask: Ask) -> Job:
        """The answer's work; what was asked is remembered."""
        salted = (ask.salt, ask.prompt)
        cached = ask.prompt_tokens - 1 if self.knobs.prefix_cache and salted in self._prompts else 0
        if len(self._prompts) >= REMEMBERED_PROMPTS:
            self._prompts.clear()
        self._prompts.add(salted)
        self._answered += 1
        return Job(ask.prompt, ask.prompt_tokens, cached, ask.answer)

    async def _answer(self, ask: Ask, reply: Reply) -> None:
        job = self._job(ask)
        shapes = Shapes.of(ask, self._answered, job.cached_tokens, self.knobs.defect)
        await (self._stream(job, shapes, reply) if ask.stream else self._unary(job, shapes, reply))

    async def _tell(self, events: MessageEvents | ResponseEvents, job: Job, reply: Reply) -> None:
        """An answer in a dialect of its own, whole or in events."""
        pieces: list[str] = []
        if events.ask.stream:
            reply.start()
            for event in events.opening():
                await reply.send(event)
        async with aclosing(self._model.tokens(job)) as tokens:
            async for piece in tokens:
                pieces.append(piece)
                if events.ask.stream:
                    await reply.send(events.piece(piece))
                if len(pieces) == self.knobs.truncate_after_tokens:
                    return reply.transport.close()
        if not events.ask.stream:
            return reply.json(200, events.whole(pieces))
        for event in events.closing(pieces):
            await reply.send(event)
        reply.finish()

    async def _unary(self, job: Job, shapes: Shapes, reply: Reply) -> None:
        pieces: list[str] = []
        async with aclosing(self._model.tokens(job)) as tokens:
            async for piece in tokens:
                pieces.append(piece)
                if len(pieces) == self.knobs.truncate_after_tokens:
                    return _send_half(shapes.whole(pieces), reply)
        reply.json(200, shapes.whole(pieces))

    async def _stream(self, job: Job, shapes: Shapes, reply: Reply) -> None:
        reply.start()
        if (opening := shapes.opening()) is not None:
            await reply.send(http1.sse(opening))
        sent = 0
        async with aclosing(self._model.tokens(job)) as tokens:
            async for piece in tokens:
                await reply.send(http1.sse(shapes.piece(piece, sent)))
                sent += 1
                if sent == self.knobs.truncate_after_tokens:
                    return reply.transport.close()
        await reply.send(http1.sse(shapes.closing()))
        if shapes.ask.include_usage:
            await reply.send(http1.sse(shapes.usage()))
        await reply.send(b"data: [DONE]\n\n")
        reply.finish()


def _send_half(value: dict[str, object], reply: Reply) -> None:
    """The beginning of a response that claims to be longer, then the end of the connection."""
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    reply.transport.write(head.encode() + body[: len(body) // 2])
    reply.transport.close()

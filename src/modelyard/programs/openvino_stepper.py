"""The stepping process of the OpenVINO engine server: the model, the scheduler in front of it, and nothing else.

Why a process of its own: `step()` holds Python's interpreter lock for a whole forward pass (up to 0.9 s in a long
prefill at 512 prompt tokens a step), so an event loop in the same process would neither accept, cancel nor answer
/health meanwhile. Tokenising and detokenising stay here: the tokenizer belongs to the pipeline, loading it twice costs
1.7 s and its memory, and turning a step's tokens into text costs microseconds.

What this scheduler does that the engine's own does not:

* A request starts only when its prompt and its whole allowed output fit into the KV pool beside those that run.
  The engine would start everything, then throw work away by preemption, and in the end drop *all* running requests.
* With the prefix cache on, prompts are fed in pieces of whole KV blocks, one piece a step, each as a request of its
  own whose blocks the next piece restores. The engine registers a block as cached when it is *allocated*: a prompt
  cancelled in the middle of a block leaves a block that claims more than was computed, and the next prompt with that
  prefix reads uninitialised memory (seen as NaN logits). And two prompts that in one step extend the same partly
  filled cached block write into each other. Whole blocks, one prefill at a time, and no cancelling inside a piece make
  both impossible; the pieces cost nothing measurable (4.03 s against 4.04 s for 4,000 tokens) and let short prompts
  pass long ones.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from openvino_channel import FrameReader, frame
from openvino_config import ServerConfig
from openvino_engine import Engine, Unusable
from openvino_prefix import BLOCK_TOKENS, Digest, PrefixMirror, chain
from openvino_text import StopFilter, TextTail
from parent_death import die_with_parent


@dataclass
class Job:
    """One client's request on its way through: waiting, feeding (its prompt), running (its engine handle)."""

    number: int
    prompt: list[int]
    generation: Any
    blocks: int
    quiet: bool
    stop: StopFilter
    cached: int | None = None
    fed: int = 0
    handle: Any = None
    doomed: bool = False
    output: list[int] = field(default_factory=list[int])
    pieces: list[str] = field(default_factory=list[str])
    tail: TextTail = field(default_factory=TextTail)
    held: list[Digest] = field(default_factory=list[Digest])


class Stepper:
    def __init__(self, engine: Engine, config: ServerConfig, pipe: socket.socket) -> None:
        self._engine = engine
        self._config = config
        self._pipe = pipe
        self._reader = FrameReader()
        self._mirror = PrefixMirror(engine.kv_blocks)
        self._limit = engine.context_tokens()
        self._waiting: deque[Job] = deque()
        self._feeding: deque[Job] = deque()
        self._running: list[Job] = []
        self._piece: tuple[Job, Any] | None = None
        self._engine_requests = 0
        self._texts: list[tuple[int, str]] = []
        self._done: list[tuple[int, str, int, int, int]] = []
        self._changed = False
        self._totals = {"steps": 0, "generated": 0, "prompt": 0, "cached": 0, "cancelled": 0}

    def run(self) -> None:
        while True:
            self._receive(wait=not self._has_work())
            self._admit()
            self._feed()
            if self._engine.has_work():
                self._engine.step()
                self._totals["steps"] += 1
                self._changed = True
                self._collect()
            self._report()

    def _has_work(self) -> bool:
        return bool(self._waiting or self._feeding) or self._engine.has_work()

    def _receive(self, *, wait: bool) -> None:
        while select.select([self._pipe], [], [], None if wait else 0)[0]:
            data = self._pipe.recv(1 << 20)
            if not data:
                os._exit(0)  # the HTTP process is gone, and with it everyone this work was for
            for message in self._reader.feed(data):
                self._act(message)
            wait = False

    def _act(self, message: dict[str, Any]) -> None:
        if message["op"] == "cancel":
            self._cancel(message["id"])
            return
        try:
            if message["op"] == "count":
                self._count(message)
                return
            if message["op"] == "read":
                self._read(message)
                return
            self._waiting.append(self._job(message))
        except Unusable as refusal:
            self._refuse(message["id"], refusal, refusal.param or message["param"])
        self._changed = True

    def _job(self, message: dict[str, Any]) -> Job:
        prompt = self._prompt(message)
        room = self._limit - len(prompt)
        if room < 1:
            count = f"at least {len(prompt)}" if len(prompt) == self._engine.tokenizer_limit else str(len(prompt))
            raise Unusable(
                f"This model's maximum context length is {self._limit} tokens. However, your prompt has "
                f"{count} tokens, and the answer needs at least 1.",
                code="context_length_exceeded",
            )
        max_tokens = min(room, message["max_tokens"] or room)
        generation = self._engine.generation(message["sampling"], max_tokens, message["schema"])
        most = len(prompt) + max_tokens + self._config.speculative_tokens
        blocks = -(-most // BLOCK_TOKENS) + 1  # one to spare for copy-on-write
        return Job(message["id"], prompt, generation, blocks, message["quiet"], StopFilter(message["stop"]))

    def _prompt(self, message: dict[str, Any]) -> list[int]:
        if "messages" in message:
            prompt = self._engine.render_chat(message["messages"], message.get("begun", ""))
        elif "text" in message:
            prompt = self._engine.encode(message["text"])
        else:
            prompt = message["tokens"]
            self._check_vocabulary(prompt)
        if not prompt:
            raise Unusable("the prompt is empty")
        return prompt

    def _count(self, message: dict[str, Any]) -> None:
        """Tokens without an answer: between two steps, as every prompt is tokenised."""
        if "messages" in message:
            tokens = self._engine.render_chat(message["messages"], opening=message["opening"])
        else:
            tokens = self._engine.encode(message["text"], special=message["special"])
        if len(tokens) == self._engine.tokenizer_limit:
            raise Unusable(f"the tokenizer counts no further than {len(tokens)} tokens", code="context_length_exceeded")
        strings = self._engine.texts([[token] for token in tokens]) if message["strings"] else None
        self._send({"kind": "counted", "id": message["id"], "tokens": tokens, "strings": strings})

    def _read(self, message: dict[str, Any]) -> None:
        self._check_vocabulary(message["tokens"])
        [text] = self._engine.texts([message["tokens"]]) if message["tokens"] else [""]
        self._send({"kind": "read", "id": message["id"], "text": text})

    def _check_vocabulary(self, tokens: list[int]) -> None:
        """The engine looks ids up unchecked."""
        if bad := next((token for token in tokens if not 0 <= token < self._engine.vocabulary_size), None):
            raise Unusable(f"token id {bad} is outside the vocabulary of {self._engine.vocabulary_size}")

    def _refuse(self, number: int, refusal: Unusable, param: str) -> None:
        self._send({"kind": "refused", "id": number, "message": str(refusal), "param": param, "code": refusal.code})

    def _admit(self) -> None:
        active = [*self._feeding, *self._running]
        used = sum(job.blocks for job in active)
        seats = self._config.max_sequences - len(active)
        while self._waiting and seats > 0 and used + self._waiting[0].blocks <= self._engine.kv_blocks:
            job = self._waiting.popleft()
            self._feeding.append(job)
            used += job.blocks
            seats -= 1

    def _feed(self) -> None:
        if not self._config.prefix_cache:
            while self._feeding:
                self._start(self._feeding.popleft(), restored=0)
            return
        if self._piece is not None or any(not job.output for job in self._running):
            return  # one prefill at a time, see above
        if not self._feeding:
            return
        job = self._feeding.popleft()
        restored = self._mirror.restorable(job.prompt)
        if job.cached is None:
            job.cached = min(restored, len(job.prompt) - 1)
        begin = max(restored, job.fed) // BLOCK_TOKENS * BLOCK_TOKENS
        end = begin + self._config.max_batched_tokens // BLOCK_TOKENS * BLOCK_TOKENS
        if end >= len(job.prompt):
            self._start(job, restored)
            return
        self._mirror.drop_tail(job.prompt, restored)
        handle = self._engine.submit(self._next_number(), job.prompt[:end], self._engine.greedy_single_token())
        self._hold(job, job.prompt, end)
        self._piece = (job, handle)
        job.fed = end
        self._feeding.append(job)  # behind the others: prompts take turns

    def _start(self, job: Job, restored: int) -> None:
        job.handle = self._engine.submit(self._next_number(), job.prompt, job.generation)
        job.cached = job.cached or 0
        if self._config.prefix_cache:
            self._mirror.drop_tail(job.prompt, restored)
            self._hold(job, job.prompt, len(job.prompt))
        self._running.append(job)
        self._totals["prompt"] += len(job.prompt)
        self._totals["cached"] += job.cached

    def _next_number(self) -> int:
        self._engine_requests += 1
        return self._engine_requests

    def _hold(self, job: Job, tokens: list[int], count: int) -> None:
        new = chain(tokens, count)[len(job.held) :]
        self._mirror.hold(new)
        job.held += new

    def _let_go(self, job: Job) -> None:
        if not self._config.prefix_cache:
            return
        # The last sampled token has not been through the model: it has no KV yet.
        computed = [*job.prompt, *job.output[:-1]] if job.handle is not None else job.prompt[: job.fed]
        self._hold(job, computed, len(computed))
        tail = computed[len(job.held) * BLOCK_TOKENS :]
        self._mirror.release(job.held, job.held[-1] if job.held else b"", tail)

    def _cancel(self, number: int) -> None:
        for queue in (self._waiting, self._feeding):
            for job in queue:
                if job.number == number:
                    queue.remove(job)
                    self._let_go(job)
                    self._totals["cancelled"] += 1
                    self._changed = True
                    return
        for job in self._running:
            if job.number == number and not job.doomed:
                job.doomed = True
                self._totals["cancelled"] += 1
                self._end_if_doomed(job)
                return

    def _end_if_doomed(self, job: Job) -> None:
        """Inside a prefill the cached blocks are not what they claim to be, so that step is waited for."""
        if job.doomed and (job.output or not self._config.prefix_cache):
            job.handle.cancel()
            self._leave(job)

    def _leave(self, job: Job) -> None:
        self._running.remove(job)
        self._let_go(job)
        self._changed = True

    def _collect(self) -> None:
        if self._piece is not None and self._engine.outcome(self._piece[1])[1] is not None:
            self._piece = None
        for job in self._running.copy():
            tokens, reason = self._engine.outcome(job.handle)
            if tokens or reason:
                job.output += tokens
                self._totals["generated"] += len(tokens)
                self._advance(job, self._engine.decode(job.tail.window(tokens)), reason)

    def _advance(self, job: Job, decoded: str, reason: str | None) -> None:
        if job.doomed:
            if reason is None:
                self._end_if_doomed(job)
            else:
                self._leave(job)
            return
        text, stopped = job.stop.push(job.tail.advance(decoded, last=reason is not None))
        if stopped:
            if reason is None:
                job.handle.stop()
            reason = "stop"
        elif reason is not None:
            text += job.stop.flush()
        elif (window := job.tail.anchor()) is not None:
            job.tail.shorten(self._engine.decode(window))
        self._show(job, text, ended=reason is not None)
        if reason is not None:
            self._done.append((job.number, reason, len(job.prompt), len(job.output), job.cached or 0))
            self._leave(job)

    def _show(self, job: Job, text: str, *, ended: bool) -> None:
        if job.quiet:
            job.pieces.append(text)
            text = "".join(job.pieces) if ended else ""
        if text:
            self._texts.append((job.number, text))

    def _report(self) -> None:
        if not self._changed:
            return
        active = [*self._feeding, *self._running]
        held = sum(-(-(max(job.fed, len(job.prompt) * bool(job.handle)) + len(job.output)) // 32) for job in active)
        stats = {
            **self._totals,
            "running": len(active),
            "waiting": len(self._waiting),
            "kv_usage": round(min(1.0, held / self._engine.kv_blocks), 6),
        }
        self._send({"kind": "step", "texts": self._texts, "done": self._done, "stats": stats})
        self._texts, self._done, self._changed = [], [], False

    def _send(self, message: dict[str, Any]) -> None:
        self._pipe.sendall(frame(message))


def main() -> None:
    parser = argparse.ArgumentParser(description="The stepping process; started by openvino_server.py.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--pipe", type=int, required=True, help="inherited socket to the HTTP process")
    parser.add_argument("--parent", type=int, required=True, help="process id of the HTTP process")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = socket.socket(fileno=arguments.pipe)

    def report(stage: str, done: int, total: int, text: str) -> None:
        pipe.sendall(frame({"kind": "progress", "stage": stage, "done": done, "total": total, "text": text}))

    try:
        config = ServerConfig.load(arguments.config)
        engine = Engine(config, report)
        pipe.sendall(frame({"kind": "ready", "effective": engine.effective()}))
        Stepper(engine, config, pipe).run()
    except Exception as error:  # the outermost border of this process: name the cause, then end
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        with contextlib.suppress(OSError):
            pipe.sendall(frame({"kind": "failed", "cause": cause[:2000]}))
        sys.exit(1)


if __name__ == "__main__":
    main()

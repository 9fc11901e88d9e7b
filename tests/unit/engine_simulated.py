"""An engine that batches continuously, and clients that ask it through a real door; time is that of its steps."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway_fakes import deployment

from modelyard.gateway.admission import Admission, Asking, Queued, Result, Seats
from modelyard.gateway.refusals import Refusal
from modelyard.records.decision import Decision
from modelyard.records.topology import Replica

SWEEP_S = 0.5


@dataclass(eq=False)
class Request:
    """One in the simulation, its times those of the simulation, 0 where it never came to it."""

    world: World
    asking: Asking
    fresh_tokens: int
    answer_tokens: int
    came_at: float
    seated_at: float = 0.0
    first_at: float = 0.0
    ended_at: float = 0.0
    is_refused: bool = False
    to_read: int = 0
    to_write: int = 0
    seats: Seats | None = None
    ticket: Queued | None = None

    def seated(self, seats: Seats, decision: Decision) -> None:
        self.seats, self.seated_at = seats, self.world.now
        is_cached = self.world.dice.random() < self.world.cached_part
        self.to_read, self.to_write = 1 if is_cached else self.fresh_tokens, self.answer_tokens
        self.world.engine.reading.append(self)

    def not_seated(self, refusal: Refusal) -> None:
        self.is_refused = True

    @property
    def first_s(self) -> float:
        """In the engine."""
        return self.first_at - self.seated_at


@dataclass
class Engine:
    """A step reads up to `chunk_tokens` of the prompts that came first, of `sequences` requests at once, and writes a
    token of each answer. It takes `step_s`, `sequence_s` for each answer and `token_s` for each token read, the latter
    times `slower(requests)`."""

    step_s: float = 0.02
    sequence_s: float = 0.0005
    token_s: float = 0.0005
    chunk_tokens: int = 512
    sequences: int = 1 << 20
    slower: Callable[[int], float] = lambda requests: 1.0
    reading: deque[Request] = field(default_factory=deque[Request])
    writing: list[Request] = field(default_factory=list[Request])

    def step(self) -> tuple[float, list[Request]]:
        """How long it takes, and whose first token stands at its end."""
        left, begun = self.chunk_tokens, list[Request]()
        requests = len(self.reading) + len(self.writing)
        while self.reading and left and len(self.writing) + len(begun) < self.sequences:
            request = self.reading[0]
            read = min(left, request.to_read)
            request.to_read -= read
            left -= read
            if not request.to_read:
                begun.append(self.reading.popleft())
        reading_s = self.token_s * (self.chunk_tokens - left) * self.slower(requests)
        return self.step_s + self.sequence_s * len(self.writing) + reading_s, begun


@dataclass
class World:
    """`clients` ask again as soon as they are answered; `sizes` draws prompt and answer of each request.
    `cached_part` of the prompts are in the engine's prefix cache, which it tells nobody."""

    engine: Engine
    cap: int
    clients: int
    policy: dict[str, Any] = field(default_factory=dict[str, Any])
    sizes: Callable[[random.Random], tuple[int, int]] = lambda dice: (dice.randint(100, 400), dice.randint(20, 120))
    cached_part: float = 0.0
    seed: int = 1
    now: float = 0.0

    def __post_init__(self) -> None:
        replica = Replica(name="a", launch="1", address="unix:/a", max_in_flight=self.cap)
        wanted = {"max_queued": 4096, "queue_timeout_s": 1e6, "overload_wait_s": 1e6, **self.policy}
        shape = deployment(replicas=(replica,), **wanted)
        self.door = Admission(shape, jitter=lambda: 0.0, clock=lambda: self.now)
        self.door.update(shape)
        self.dice = random.Random(self.seed)
        self.ended: list[Request] = []
        self.limits: list[tuple[float, int]] = []
        self.asking = 0
        self._swept = 0.0

    @property
    def seats(self) -> Seats:
        return self.door.seats["a"]

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            while self.asking < self.clients:
                self._ask()
            took_s, begun = self.engine.step()
            self._pass(took_s, begun)
            written, self.engine.writing = self.engine.writing, []
            for request in begun:
                request.first_at = self.now
            for request in [*written, *begun]:
                request.to_write -= 1
                if request.to_write > 0:
                    self.engine.writing.append(request)
                else:
                    self._end(request)

    def _pass(self, seconds: float, begun: list[Request]) -> None:
        end = self.now + seconds
        while self._swept + SWEEP_S <= end:
            self.now = self._swept = self._swept + SWEEP_S
            self._sweep([*self.engine.reading, *begun])
        self.now = end

    def goodput(self, begin: float, end: float) -> float:
        """Tokens of whole answers a second."""
        return sum(one.answer_tokens for one in self.ended if begin <= one.ended_at < end) / (end - begin)

    def first_s(self, begin: float, end: float) -> list[float]:
        return [one.first_s for one in self.ended if begin <= one.seated_at and one.ended_at < end]

    def _ask(self) -> None:
        self.asking += 1
        fresh, answer = self.sizes(self.dice)
        request = Request(self, Asking("a", tokens=fresh + answer), fresh, answer, self.now)
        request.ticket = self.door.enter(request, request.asking, self.now)

    def _end(self, request: Request) -> None:
        request.ended_at = self.now
        self.ended.append(request)
        self.asking -= 1
        assert request.seats is not None
        tokens, held_s = request.fresh_tokens + request.answer_tokens, self.now - request.seated_at
        result = Result("answered", request.first_s, tokens, held_s, request.fresh_tokens)
        self.door.leave(request.seats, result, request.asking)

    def _sweep(self, unread: list[Request]) -> None:
        for request in unread:
            self.seats.waits(self.now - request.seated_at, request.fresh_tokens, self.now)
        self.door.expire(self.now)
        self.limits.append((self.now, self.seats.limit))

"""How many requests a launch is given at once: all that it may have, and fewer while its first tokens come late.

An engine that is given more than it can work on does not refuse the rest: it queues them, in its own order. There no
key is fair to another, no priority counts and no deadline holds. So what the engine would only queue waits in ours.

The limit follows a gradient, as Envoy's adaptive concurrency and Netflix's concurrency-limits do: expected over
observed. But how long an answer takes says nothing, it depends on its tokens; what counts is how long its first token
takes against what is expected for the prompt (`first_tokens.py`). And engines that batch continuously are meant to run
full: first tokens may take several times what they take alone before that counts as late. With that much read ahead
of each, the engine does not run out of work, so a lower limit costs no throughput where prompts are what it is busy
with; where it is busy with answers, first tokens do not come late.

A limit falls only where it is in use, on evidence of several requests that were seated since it last fell: one crowd
counts once. It rises again by its root, which is the headroom that both models give."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from modelyard.gateway.asking import Result
from modelyard.gateway.first_tokens import FirstTokens
from modelyard.gateway.standing import Mean

# Of the cap: what a launch is always given, and so few that whoever was never among more has seen no crowd.
FLOOR_PART = 1 / 8
# What a first token may take beyond its multiple of the expectation: the steps of a batch that runs anyway.
SLACK_S = 0.5
# So many requests are evidence; the whole limit where that is less.
EVIDENCE = 8
# One change takes away no more than this, and one request counts for no more than so many times what it is allowed.
LEAST_GRADIENT = 0.7
MOST_LATE = 4.0
# Below this part of what is allowed the limit rises; between it and one it stays.
COMFORT = 0.75
# The last step to a limit that was too much is taken in small ones, from this part of it on.
NEAR = 4 / 3
# The limit rises no more often than this, and without evidence too; evidence that was too little is forgotten.
PATIENCE_S = 2.0
WINDOW_S = 60.0


@dataclass(slots=True)
class _Evidence:
    """Requests, how long their first tokens took, and how long they might have."""

    requests: int = 0
    took_s: float = 0.0
    allowed_s: float = 0.0

    def add(self, took_s: float, allowed_s: float) -> None:
        self.requests += 1
        self.took_s += min(took_s, MOST_LATE * allowed_s)
        self.allowed_s += allowed_s


def stepped(level: float, used: int, strain: float, late_at: float, floor: int, cap: int) -> float:
    """The next limit: `strain` is what first tokens took over what they may, `used` the most that was in flight,
    `late_at` the limit with which they came late before (0: none)."""
    if strain > 1:
        if 2 * used < level:
            return level
        level = min(level, used) * max(LEAST_GRADIENT, 1 / strain)
    elif strain < COMFORT:
        headroom = math.sqrt(level)
        is_near = level < late_at < NEAR * (level + headroom)
        level += max(1.0, headroom / 4) if is_near else headroom
    return min(cap, max(floor, level))


@dataclass(slots=True, eq=False)
class Concurrency:
    """Of one launch. `tolerance`: how many times what is expected a first token may take. No clock of its own."""

    cap: int
    tolerance: float
    floor: int = field(init=False)
    limit: int = field(init=False)
    expected: FirstTokens = field(default_factory=FirstTokens)
    _level: float = field(init=False)
    _fell_at: float = 0.0
    _since: float = 0.0
    # When a seat was last given back in a crowd: whoever was seated after that was never in one.
    _crowded_at: float = 0.0
    _used: int = 0
    _late_at: float = 0.0
    _usual_s: Mean = field(default_factory=Mean)
    _came: _Evidence = field(default_factory=_Evidence)
    _wait: _Evidence = field(default_factory=_Evidence)
    _is_stuck: bool = False
    # By those in flight, since the limit fell.
    _is_reached: bool = True

    def __post_init__(self) -> None:
        self._level = float(self.cap)
        self.bound(self.cap, self.tolerance)

    def bound(self, cap: int, tolerance: float) -> None:
        """The topology says this now; a limit that was the cap is the new one."""
        was_full = self._level >= self.cap
        self.cap, self.tolerance = cap, tolerance
        self.floor = max(1, int(cap * FLOOR_PART))
        self._level = float(cap) if was_full else min(float(cap), max(self._level, float(self.floor)))
        self.limit = int(self._level)

    def left(self, in_flight: int, result: Result, now: float) -> None:
        """A request gives its seat back, itself counted in `in_flight`."""
        if in_flight > self._used:
            self._used = in_flight
        is_crowd = in_flight > self.floor
        if is_crowd:
            self._crowded_at = now
        # Without a count of tokens nobody knows what had to be read.
        if result.first_delta_s and result.tokens:
            self._came_after(result, now - result.held_s, is_crowd=is_crowd)

    def _came_after(self, result: Result, seated_at: float, *, is_crowd: bool) -> None:
        fresh, first_s = result.prompt_tokens, result.first_delta_s
        allowed_s = self._allowed_s(fresh)
        is_calm = not is_crowd and seated_at > self._crowded_at
        self.expected.learn(fresh, first_s, allowed_s, is_calm=is_calm)
        if allowed_s:
            self._usual_s.add(allowed_s)
            if seated_at >= self._fell_at:
                self._came.add(first_s, allowed_s)

    def waits(self, waited_s: float, prompt_tokens: int, now: float) -> None:
        """Somebody has had no first token for so long; of the prompt no more is fresh than `prompt_tokens`."""
        allowed_s = self._allowed_s(prompt_tokens)
        if not allowed_s:
            return
        if waited_s > min(allowed_s, self._usual_s.value or allowed_s):
            # Perhaps too long: how much of it is cached nobody knows yet.
            self._is_stuck = True
        if waited_s > allowed_s and (self._is_reached or now - waited_s >= self._fell_at):
            self._wait.add(waited_s, allowed_s)

    def look(self, in_flight: int, now: float) -> int:
        """To be called often, after all that wait were told of: the limit from now on."""
        self._used = max(self._used, in_flight)
        self._is_reached = self._is_reached or in_flight <= self.limit
        is_stuck = self._is_stuck or not self._is_reached
        strain = self._strain(now, is_stuck=is_stuck)
        self._wait, self._is_stuck = _Evidence(), False
        if strain is not None:
            self._step(strain, now)
        return self.limit

    def _strain(self, now: float, *, is_stuck: bool) -> float | None:
        """None while it is too early to say."""
        came, wait = self._came, self._wait
        may_rise = now - self._since >= PATIENCE_S
        if came.requests + wait.requests >= min(EVIDENCE, self.limit):
            strain = (came.took_s + wait.took_s) / (came.allowed_s + wait.allowed_s)
            return strain if strain > 1 or may_rise else None
        if came.requests or is_stuck:
            return 1.0 if now - self._since >= WINDOW_S else None
        return 0.0 if may_rise else None

    def _step(self, strain: float, now: float) -> None:
        before, used = self._level, self._used
        self._since, self._used, self._came = now, 0, _Evidence()
        self._level = stepped(before, used, strain, self._late_at, self.floor, self.cap)
        self.limit = int(self._level)
        if self._level < before:
            self._fell_at, self._late_at, self._is_reached = now, before, False

    def _allowed_s(self, fresh_tokens: int) -> float:
        """0 where nothing is known."""
        expected_s = self.expected.expected_s(fresh_tokens)
        return self.tolerance * expected_s + SLACK_S if expected_s else 0.0

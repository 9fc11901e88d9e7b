"""One tenant tries to learn of another: by the time and the counts of cached prompts, by names, by the time of a no."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from modelyard.records.keys import Scopes
from modelyard.selftest.bench import MODEL, Bench, deployment, replica
from modelyard.selftest.connection import Connection, chat, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row

CHAT = "/v1/chat/completions"
DEADLINE_S = 20.0
PROMPT_WORDS = 24
# A prompt that is not cached takes so long, a cached one next to nothing.
PREFILL_TOKEN_S = 0.001
UNSALTED_PAIRS = 40
REFUSALS_PER_PAIR = 125
MOST_AUC, LEAST_AUC_UNSALTED, MOST_CORRELATION = 0.55, 0.95, 0.05
PRIVATE = "private"


@dataclass
class Oracle:
    """How long the other tenant's prompts took (`hits`, if the cache were shared), and fresh ones of one length."""

    hits: list[float] = field(default_factory=list[float])
    misses: list[float] = field(default_factory=list[float])
    cached_tokens: int = 0

    @property
    def auc(self) -> float:
        """The chance that a prompt which the other tenant asked is answered sooner than a fresh one: 0.5 tells
        nothing, 1 everything."""
        wins = sum((hit < miss) + 0.5 * (hit == miss) for hit in self.hits for miss in self.misses)
        return wins / (len(self.hits) * len(self.misses))


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    engine = await bench.engine(prefill_token_s=PREFILL_TOKEN_S)
    served = deployment(replica(engine), cache_salt=True)
    private = deployment(replica(engine), name=PRIVATE)
    gateway = await bench.gateway(served, private)
    victim, other = (gateway.add_key(name, Scopes(deployments=(MODEL,))).secret for name in ("victim", "other"))
    await gateway.start()  # it reads the keys
    salted = await _oracle(bench, gateway, victim, other, bench.size, tally)
    tally.expect(salted.cached_tokens == 0, f"{salted.cached_tokens} tokens came from another tenant's cache")
    await _own_prompts_are_cached(gateway, victim, tally)
    await _names(gateway, other, tally)
    await _refusals(bench, gateway, bench.size * REFUSALS_PER_PAIR, tally)
    # The oracle itself must work, or the first figure says nothing: without salts it tells everything.
    gateway.publish(deployment(replica(engine), cache_salt=True, salted=False), private)
    await gateway.start()
    unsalted = await _oracle(bench, gateway, victim, other, UNSALTED_PAIRS, Tally())
    spread = 1.0 if bench.short else MOST_AUC
    tally.figure("hit told from miss by time, AUC", max(salted.auc, 1 - salted.auc), at_most=spread)
    tally.figure("the same without salts, AUC", unsalted.auc, at_least=LEAST_AUC_UNSALTED)
    return tally.outcome()


async def _oracle(bench: Bench, gateway: GatewayProcess, victim: str, other: str, pairs: int, tally: Tally) -> Oracle:
    found, connection = Oracle(), await gateway.connect()
    for _ in range(pairs):
        asked, fresh = _prompt(bench.rng), _prompt(bench.rng)
        await _first_byte_s(connection, victim, asked)
        probes = [(asked, found.hits), (fresh, found.misses)]
        bench.rng.shuffle(probes)
        for prompt, times in probes:
            took_s, cached = await _first_byte_s(connection, other, prompt)
            times.append(took_s)
            found.cached_tokens += cached if prompt is asked else 0
        bench.progress(tally.tried())
    connection.close()
    return found


def _prompt(rng: random.Random) -> str:
    return " ".join(f"{rng.randrange(10**6):06d}" for _ in range(PROMPT_WORDS))


async def _first_byte_s(connection: Connection, key: str, prompt: str) -> tuple[float, int]:
    """Seconds to the first piece of an answer, and how many of the prompt's tokens were cached."""
    body = chat(MODEL, stream=True, tokens=1, content=prompt, stream_options={"include_usage": True})
    response = await connection.ask(post(CHAT, key, body), DEADLINE_S)
    text = response.body.decode()
    cached = int(text.partition('"cached_tokens":')[2].partition("}")[0] or 0)
    return response.first_at - response.sent_at, cached


async def _own_prompts_are_cached(gateway: GatewayProcess, key: str, tally: Tally) -> None:
    connection = await gateway.connect()
    await _first_byte_s(connection, key, "a prompt of my own")
    _, cached = await _first_byte_s(connection, key, "a prompt of my own")
    connection.close()
    tally.expect(cached > 0, "a tenant's own prompt is not cached either")


async def _names(gateway: GatewayProcess, key: str, tally: Tally) -> None:
    """What a key may not reach looks like what does not exist."""
    connection = await gateway.connect()
    listed = await connection.ask(_get("/v1/models", key), DEADLINE_S)
    names = [model["id"] for model in listed.json()["data"]]
    tally.expect(names == [MODEL], f"a key that may reach {MODEL!r} is told of {names}")
    for path in (f"/v1/models/{PRIVATE}", "/v1/models/absent"):
        tally.expect((await connection.ask(_get(path, key), DEADLINE_S)).status == 404, f"{path} is there")
    answers: list[tuple[int, bytes]] = []
    for name in (PRIVATE, "absentx"):
        response = await connection.ask(post(CHAT, key, chat(name)), DEADLINE_S)
        answers.append((response.status, response.body.replace(name.encode(), b"NAME")))
    connection.close()
    tally.expect(answers[0] == answers[1], f"another tenant's deployment is answered {answers[0]}, none {answers[1]}")


def _get(path: str, key: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n\r\n".encode()


async def _refusals(bench: Bench, gateway: GatewayProcess, count: int, tally: Tally) -> None:
    """Whether a wrong key that begins like a right one is refused later."""
    shared: list[int] = []
    times_s: list[float] = []
    connection = await gateway.connect()
    begin = gateway.key.rindex("_") + 1
    for _ in range(count):
        same = bench.rng.randrange(len(gateway.key) - begin)
        secret = gateway.key[: begin + same] + "!" * (len(gateway.key) - begin - same)
        if not connection.open:
            connection = await gateway.connect()
        request, began = _get("/v1/models", secret), time.perf_counter()
        status = (await connection.ask(request, DEADLINE_S)).status
        times_s.append(time.perf_counter() - began)
        shared.append(same)
        tally.saw(f"wrong keys: {status}")
        tally.expect(status == 401, f"a wrong key is answered {status}")
    connection.close()
    # Ranks: a few pauses of the machine must not decide.
    correlation = statistics.correlation(_ranks(shared), _ranks(times_s))
    most = 1.0 if bench.short else MOST_CORRELATION
    tally.figure("time of a refusal by characters that are right, |r|", abs(correlation), at_most=most)


def _ranks(values: Sequence[float]) -> list[float]:
    """The place of each value among all; equal ones share the middle of their places."""
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values)):
        places.setdefault(value, []).append(place)
    return [(places[value][0] + places[value][-1]) / 2 for value in values]


ROW = Row(
    key="39",
    name="one tenant tries to learn of another",
    claim="Neither the time (AUC at most 0.55) nor the counts tell that another key has asked a prompt, where the "
    "engine knows salts; a name that a key may not reach looks like one that does not exist; how much of a wrong key "
    "is right does not show in the time of its refusal (|r| below 0.05).",
    unit="pairs",
    full=400,
    short=10,
    run=run,
    sources=("gateway", "testing/fake_engine.py"),
    takes_s=45,
)

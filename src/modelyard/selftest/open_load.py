"""Requests that come at a rate, whatever becomes of those before them: what overload is made of."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modelyard.selftest.asking import CHAT, judge
from modelyard.selftest.bench import MODEL
from modelyard.selftest.connection import Lost, chat, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Tally, quantile

GIVEN_UP_AFTER_S = 60.0


@dataclass(frozen=True)
class Ended:
    """One request, `began_s` after the load did. `status` is 0 where none came; `first_s` is when its first piece of an
    answer came, after it was sent, `took_s` its end; `is_right`: the whole answer, or a refusal that says when to come
    again. `request_id` is the gateway's, by which its journal tells more."""

    began_s: float
    status: int
    first_s: float
    took_s: float
    is_right: bool
    request_id: str = ""


@dataclass(frozen=True)
class Question:
    """What all requests of a load ask for. `text` is the right answer, None where only the engine knows it."""

    tokens: int
    text: str | None = None
    prompt: str = ""

    def body(self, rng: random.Random) -> dict[str, Any]:
        """One request, greedy; no two have the same prompt, so that no answer comes from a cache."""
        return chat(
            MODEL, stream=True, tokens=self.tokens, content=f"{self.prompt} {rng.random()}".strip(), temperature=0
        )


@dataclass(frozen=True)
class Offer:
    """`rate` requests a second by one key, with Poisson's gaps."""

    key: str
    rate: float
    question: Question


async def offered(
    gateway: GatewayProcess, offers: Sequence[Offer], lasts_s: float, rng: random.Random
) -> list[list[Ended]]:
    """What became of each offer's requests, in the order sent; returns when all have ended."""
    return list(await asyncio.gather(*(_offered(gateway, one, lasts_s, random.Random(rng.random())) for one in offers)))


async def kept_busy(
    gateway: GatewayProcess, question: Question, clients: int, lasts_s: float, rng: random.Random
) -> list[Ended]:
    """What became of the requests of so many clients that each ask again when they are answered: in a closed loop."""
    began = time.monotonic()

    async def ask_on() -> list[Ended]:
        ended: list[Ended] = []
        while (now := time.monotonic() - began) < lasts_s:
            request = post(CHAT, gateway.key, question.body(rng))
            ended.append(await _ask(gateway, request, question.text, now))
        return ended

    return [one for some in await asyncio.gather(*(ask_on() for _ in range(clients))) for one in some]


async def _offered(gateway: GatewayProcess, offer: Offer, lasts_s: float, rng: random.Random) -> list[Ended]:
    began, due_s, tasks = time.monotonic(), 0.0, list[asyncio.Task[Ended]]()
    while (due_s := due_s + rng.expovariate(offer.rate)) < lasts_s:
        await asyncio.sleep(max(0.0, began + due_s - time.monotonic()))
        request = post(CHAT, offer.key, offer.question.body(rng))
        tasks.append(asyncio.create_task(_ask(gateway, request, offer.question.text, time.monotonic() - began)))
    return list(await asyncio.gather(*tasks))


async def _ask(gateway: GatewayProcess, request: bytes, text: str | None, began_s: float) -> Ended:
    began = time.monotonic()
    try:
        connection = await gateway.connect()
    except OSError:
        return Ended(began_s, 0, 0.0, time.monotonic() - began, False)
    try:
        response = await connection.ask(request, GIVEN_UP_AFTER_S)
    except (Lost, TimeoutError):
        return Ended(began_s, 0, 0.0, time.monotonic() - began, False)
    finally:
        connection.close()
    first_s, took_s = response.first_at - began, response.ended_at - began
    if response.status == 200:
        is_right = judge(200, response.headers, response.body, True, text)[0] == "whole"
    else:
        is_right = response.status in (429, 503) and response.headers.get("retry-after", "").isdigit()
    return Ended(began_s, response.status, first_s, took_s, is_right, response.headers.get("x-request-id", ""))


def note(ended: Sequence[Ended], where: str, tally: Tally) -> None:
    """Counts by status; whatever is neither an answer nor a refusal as it should be is wrong."""
    for one in ended:
        tally.saw(f"{where}: {one.status or 'no answer'}")
        tally.expect(one.is_right, f"{where}: {one.status or 'no answer'} after {one.took_s:.2f} s")


def p99_s(values: Sequence[float]) -> float:
    return quantile(values, 0.99)

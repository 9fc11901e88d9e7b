"""Requests that come at a rate, whatever becomes of those before them: what overload is made of."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

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
    again."""

    began_s: float
    status: int
    first_s: float
    took_s: float
    is_right: bool


@dataclass(frozen=True)
class Offer:
    """`rate` requests a second by one key, each of so many tokens, with Poisson's gaps."""

    key: str
    rate: float
    tokens: int


async def offered(
    gateway: GatewayProcess, offers: Sequence[Offer], lasts_s: float, rng: random.Random
) -> list[list[Ended]]:
    """What became of each offer's requests, in the order sent; returns when all have ended."""
    return list(await asyncio.gather(*(_offered(gateway, one, lasts_s, random.Random(rng.random())) for one in offers)))


async def _offered(gateway: GatewayProcess, offer: Offer, lasts_s: float, rng: random.Random) -> list[Ended]:
    text = " ".join(f"w{index}" for index in range(offer.tokens))
    began, due_s, tasks = time.monotonic(), 0.0, list[asyncio.Task[Ended]]()
    while (due_s := due_s + rng.expovariate(offer.rate)) < lasts_s:
        await asyncio.sleep(max(0.0, began + due_s - time.monotonic()))
        body = post(CHAT, offer.key, chat(MODEL, stream=True, tokens=offer.tokens, content=f"{rng.random()}"))
        tasks.append(asyncio.create_task(_ask(gateway, body, text, time.monotonic() - began)))
    return list(await asyncio.gather(*tasks))


async def _ask(gateway: GatewayProcess, request: bytes, text: str, began_s: float) -> Ended:
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
    return Ended(began_s, response.status, first_s, took_s, is_right)


def note(ended: Sequence[Ended], where: str, tally: Tally) -> None:
    """Counts by status; whatever is neither an answer nor a refusal as it should be is wrong."""
    for one in ended:
        tally.saw(f"{where}: {one.status or 'no answer'}")
        tally.expect(one.is_right, f"{where}: {one.status or 'no answer'} after {one.took_s:.2f} s")


def p99_s(values: Sequence[float]) -> float:
    return quantile(values, 0.99)

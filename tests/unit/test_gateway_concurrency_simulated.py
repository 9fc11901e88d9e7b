"""Adaptive seats before an engine that batches continuously, in simulated time: nothing is lost where it is well, and
what it cannot work on waits in front of it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from engine_simulated import Engine, World

from modelyard.selftest.outcome import quantile

Sizes = Callable[[random.Random], tuple[int, int]]
CAP = 64
# What an engine can work on, where it takes more.
ROOM = 12


def chat(dice: random.Random) -> tuple[int, int]:
    return dice.randint(100, 400), dice.randint(20, 120)


def essays(dice: random.Random) -> tuple[int, int]:
    return dice.randint(20, 100), dice.randint(200, 800)


def documents(dice: random.Random) -> tuple[int, int]:
    return dice.randint(1000, 4000), dice.randint(10, 50)


def anything(dice: random.Random) -> tuple[int, int]:
    return dice.choice((20, 100, 500, 3000)), dice.choice((5, 50, 400))


def under_load(engine: Engine, sizes: Sizes, cap: int = CAP, seed: int = 1, *, is_adaptive: bool = True) -> World:
    """Three clients for a while, then more than there are seats."""
    world = World(engine, cap, clients=3, policy={"adaptive_seats": is_adaptive}, sizes=sizes, seed=seed)
    world.run(40)
    world.clients = CAP + 16
    world.run(400)
    return world


def crowded() -> Engine:
    """It takes all that it is given, works on some, and reads the slower the more it holds."""
    return Engine(sequences=ROOM, slower=lambda requests: 1 + 0.5 * (max(0, requests - ROOM) / ROOM) ** 2)


@pytest.mark.parametrize("sizes", [chat, essays, anything])
def test_an_engine_that_is_well_keeps_all_its_seats(sizes: Sizes) -> None:
    seeds = (1, 2, 3)
    fixed = [under_load(Engine(), sizes, 32, seed, is_adaptive=False) for seed in seeds]
    adaptive = [under_load(Engine(), sizes, 32, seed) for seed in seeds]
    # One of them alone differs by as much whichever way, by where its last answers end.
    assert sum(one.goodput(40, 440) for one in adaptive) >= 0.99 * sum(one.goodput(40, 440) for one in fixed)
    limits = [limit for one in adaptive for at, limit in one.limits if at > 100]
    assert sum(limits) / len(limits) >= 0.97 * 32


def test_where_prompts_are_all_its_work_they_wait_in_front_of_it_and_nothing_is_lost() -> None:
    fixed = under_load(Engine(), documents, cap=32, is_adaptive=False)
    adaptive = under_load(Engine(), documents, cap=32)
    assert adaptive.goodput(100, 440) >= 0.98 * fixed.goodput(100, 440)
    assert quantile(adaptive.first_s(100, 440), 0.5) <= 0.5 * quantile(fixed.first_s(100, 440), 0.5)


@pytest.mark.parametrize("sizes", [chat, essays])
def test_what_an_engine_would_only_queue_waits_in_front_of_it(sizes: Sizes) -> None:
    best = under_load(crowded(), sizes, cap=ROOM, is_adaptive=False)
    fixed = under_load(crowded(), sizes, is_adaptive=False)
    adaptive = under_load(crowded(), sizes)
    begin, end = 200, 440
    limits = [limit for at, limit in adaptive.limits if at > begin]
    assert 0.75 * ROOM <= sum(limits) / len(limits) <= 1.5 * ROOM
    assert max(limits) <= 2 * ROOM
    assert adaptive.goodput(begin, end) >= 0.95 * best.goodput(begin, end)
    at_worst = quantile(adaptive.first_s(begin, end), 0.99)
    assert at_worst <= 0.25 * quantile(fixed.first_s(begin, end), 0.99)


def test_after_a_disturbance_it_has_all_its_seats_again_soon() -> None:
    """For a minute the engine works on six requests at once, whatever it is given."""
    engine = Engine()
    world = under_load(engine, chat)
    assert world.seats.limit == CAP
    engine.sequences = 6
    world.run(60)
    fallen = world.seats.limit
    engine.sequences = 1 << 20
    world.run(60)
    assert fallen <= 2 * 6
    assert world.seats.limit == CAP


def test_an_engine_that_stands_still_is_given_less_while_it_does() -> None:
    world = World(Engine(), CAP, 3, sizes=chat)
    world.run(40)
    world.clients = CAP
    world.engine.slower = lambda requests: 400.0
    began = world.now
    world.run(50)
    standing = [limit for at, limit in world.limits if began < at < began + 50]
    assert standing[0] == CAP
    assert standing[-1] <= 0.75 * CAP
    assert not any(began < one.first_at < began + 50 for one in world.ended)


def test_a_burst_from_nothing_costs_next_to_nothing() -> None:
    """64 prompts of half a second each at once: the last waits for half a minute, and the engine is well."""

    def prompts(dice: random.Random) -> tuple[int, int]:
        return 500, dice.randint(200, 400)

    served: list[float] = []
    for is_adaptive in (False, True):
        world = World(Engine(token_s=0.001), CAP, 2, {"adaptive_seats": is_adaptive}, prompts)
        world.run(40)
        world.clients = CAP
        world.run(120)
        served.append(world.goodput(40, 160))
    assert served[1] >= 0.95 * served[0]


def test_a_prefix_cache_that_nobody_tells_of_does_not_close_the_seats() -> None:
    served: list[float] = []
    for is_adaptive in (False, True):
        world = World(Engine(), 32, 3, {"adaptive_seats": is_adaptive}, chat, cached_part=0.5)
        world.run(40)
        world.clients = 48
        world.run(300)
        served.append(world.goodput(40, 340))
    assert served[1] >= 0.95 * served[0]

"""Large bodies take turns."""

from __future__ import annotations

import asyncio

from modelyard.gateway.turns import Turns, Work


def steps(log: list[str], *names: str) -> Work:
    for name in names[:-1]:
        log.append(name)
        yield
    log.append(names[-1])


async def test_one_step_of_work_runs_per_turn_of_the_loop_in_order() -> None:
    turns, log = Turns(), list[str]()
    for name in ("a", "b", "c"):
        turns.take(steps(log, name))
    assert log == []
    for expected in (["a"], ["a", "b"], ["a", "b", "c"]):
        await asyncio.sleep(0)
        assert log == expected


async def test_work_of_several_steps_is_finished_before_the_next_begins() -> None:
    turns, log = Turns(), list[str]()
    turns.take(steps(log, "a1", "a2", "a3"))
    turns.take(steps(log, "b"))
    seen: list[int] = []
    while len(log) < 4:
        await asyncio.sleep(0)
        seen.append(len(log))
    assert log == ["a1", "a2", "a3", "b"]
    assert seen == [1, 2, 3, 4]


async def test_work_that_asks_for_a_turn_gets_the_next_one() -> None:
    turns, log = Turns(), list[str]()

    def first() -> Work:
        yield from steps(log, "first")
        turns.take(steps(log, "second"))

    turns.take(first())
    await asyncio.sleep(0)
    assert log == ["first"]
    await asyncio.sleep(0)
    assert log == ["first", "second"]


async def test_work_that_fails_does_not_stop_the_next() -> None:
    turns, log = Turns(), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: log.append(str(context["exception"])))

    def fail() -> Work:
        yield
        raise RuntimeError("broken")

    turns.take(fail())
    turns.take(steps(log, "next"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert log == ["broken", "next"]

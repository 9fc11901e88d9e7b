"""Large bodies take turns."""

from __future__ import annotations

import asyncio

from modelyard.gateway.turns import Turns


async def test_one_piece_of_work_runs_per_turn_of_the_loop_in_order() -> None:
    turns, log = Turns(), list[str]()
    for name in ("a", "b", "c"):
        turns.take(lambda name=name: log.append(name))
    assert log == []
    for expected in (["a"], ["a", "b"], ["a", "b", "c"]):
        await asyncio.sleep(0)
        assert log == expected


async def test_work_that_asks_for_a_turn_gets_the_next_one() -> None:
    turns, log = Turns(), list[str]()
    turns.take(lambda: (log.append("first"), turns.take(lambda: log.append("second")))[0])
    await asyncio.sleep(0)
    assert log == ["first"]
    await asyncio.sleep(0)
    assert log == ["first", "second"]


async def test_work_that_fails_does_not_stop_the_next() -> None:
    turns, log = Turns(), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: log.append(str(context["exception"])))

    def fail() -> None:
        raise RuntimeError("broken")

    turns.take(fail)
    turns.take(lambda: log.append("next"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log == ["broken", "next"]

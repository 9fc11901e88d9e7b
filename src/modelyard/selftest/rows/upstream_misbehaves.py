"""Twelve ways in which an engine can misbehave, in streams and in plain answers."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace

from modelyard.selftest.asking import CHAT
from modelyard.selftest.bench import MODEL, Bench, deployment, replica
from modelyard.selftest.canary import Canary
from modelyard.selftest.connection import Lost, chat, connect, post
from modelyard.selftest.endings import RETRYABLE, Ending, Judged, judged
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row
from modelyard.testing import Fault, FaultProxy
from modelyard.testing.fault_plan import NOTHING

DEADLINE_S = 30.0
AT_ONCE = 8
STEM = "é🙂"  # letters of two and of four bytes
# Shorter than any answer here, so that an end after so many bytes is never the end of the answer.
MOST_BYTES, MOST_STREAMED_BYTES = 300, 1800
MOST_EVENTS = 6
# Well framed: such a connection is sound.
SOUND_FRAMING = frozenset(("bandwidth", "split-utf8", "html-502", "empty-200", "redirect"))


@dataclass(frozen=True)
class Misbehaviour:
    """One row of the matrix. `stream` and `plain` say how a request may end."""

    name: str
    stream: frozenset[Ending]
    plain: frozenset[Ending]

    def fault(self, rng: random.Random, canary: str, *, stream: bool) -> Fault:
        at_byte = rng.randrange(MOST_STREAMED_BYTES if stream else MOST_BYTES)
        match self.name:
            case "reset":
                return Fault(kind="reset", at_byte=at_byte)
            case "slow trickle":
                return Fault(kind="bandwidth", bytes_per_s=rng.choice((4_000, 10_000, 40_000)))
            case "bad chunk":
                return Fault(kind="bad-chunk", count=rng.randrange(MOST_EVENTS))
            case "wrong content-length":
                return Fault(kind=rng.choice(("wrong-length", "short-length")), size_bytes=rng.randint(8, 60))
            case "empty 200":
                return Fault(kind="empty-200")
            case "HTML 502":
                return Fault(kind="html-502")
            case "bad JSON":
                return Fault(kind="bad-json", count=rng.randint(1, MOST_EVENTS))
            case "split UTF-8":
                return Fault(kind="split-utf8")
            case "10 MiB line":
                return Fault(kind="long-line", count=rng.randint(1, MOST_EVENTS))
            case "early EOF":
                return Fault(kind="early-eof", at_byte=at_byte)
            case "1xx flood":
                return Fault(kind="informational", count=rng.choice((1, 8, 9, 1000)))
            case _:
                return Fault(kind="redirect", location=canary)


_WHOLE = frozenset[Ending](("whole",))
_REFUSED = frozenset[Ending](("refused",))
_BROKEN = frozenset[Ending](("refused", "cut"))
MATRIX = (
    Misbehaviour("reset", _BROKEN, _REFUSED),
    Misbehaviour("slow trickle", _WHOLE, _WHOLE),
    Misbehaviour("bad chunk", _BROKEN, _REFUSED),
    # A stream whose every event came before its framing broke was told to the client truthfully.
    Misbehaviour("wrong content-length", _BROKEN | _WHOLE, _REFUSED),
    Misbehaviour("empty 200", _REFUSED, _REFUSED),
    Misbehaviour("HTML 502", _REFUSED, _REFUSED),
    Misbehaviour("bad JSON", _BROKEN, _REFUSED),
    Misbehaviour("split UTF-8", _WHOLE, _WHOLE),
    # A long line is no lie: what is longer than the bounds is refused, or else it is passed on.
    Misbehaviour("10 MiB line", _BROKEN | _WHOLE, _REFUSED | _WHOLE),
    Misbehaviour("early EOF", _BROKEN, _REFUSED),
    Misbehaviour("1xx flood", _REFUSED | _WHOLE, _REFUSED | _WHOLE),
    Misbehaviour("redirect", _REFUSED, _REFUSED),
)


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    engine = await bench.engine(stem=STEM, token_interval_s=0.002)
    async with Canary() as canary, FaultProxy(engine.address) as proxy:
        served = deployment(replica(proxy.address), first_byte_timeout_s=10.0, stall_timeout_s=10.0)
        gateway = await bench.gateway(served)
        pid = gateway.pid
        for case in MATRIX:
            for stream in (True, False):
                await _try_case(bench, Scene(gateway, proxy, canary.address), case, stream, tally)
        tally.expect(canary.connections == 0, f"a redirect was followed {canary.connections} times")
        tally.expect(gateway.exit_code is None and gateway.pid == pid, "the gateway has ended")
        tally.expect("Traceback" not in gateway.printed(), f"the gateway printed {gateway.printed()[-300:]}")
        _check_records(gateway, tally)
    return tally.outcome()


@dataclass(frozen=True)
class Scene:
    gateway: GatewayProcess
    proxy: FaultProxy
    canary: str


async def _try_case(bench: Bench, scene: Scene, case: Misbehaviour, stream: bool, tally: Tally) -> None:
    """Its share of the requests, each followed by a sound one: nothing of a spoilt answer may reach another request."""
    count = bench.size // (2 * len(MATRIX))
    faults = [case.fault(bench.rng, scene.canary, stream=stream) for _ in range(count)]
    marked = [replace(fault, text=f"case {number};") for number, fault in enumerate(faults)]
    before = len(await scene.proxy.seen())
    await scene.proxy.plan(*marked, seed=bench.seed)
    where = f"{case.name}, {'stream' if stream else 'plain'}"
    numbers = iter(range(count))

    async def work(rng: random.Random) -> None:
        for number in numbers:
            found = await _ask(scene.gateway, marked[number].text, rng.randint(8, 40), stream=stream)
            allowed = case.stream if stream else case.plain
            tally.saw(f"{where}: {found.ending}")
            tally.expect(
                found.ending in allowed, f"{where}: {found.ending}: {found.detail}: {_in_short(faults[number])}"
            )
            if found.ending == "refused":
                tally.expect(int(found.detail) in RETRYABLE, f"{where}: refused with status {found.detail}")
            sound = await _ask(scene.gateway, "a sound one", rng.randint(8, 40), stream=not stream)
            tally.expect(sound.ending == "whole", f"the request after {where}: {sound.ending}: {sound.detail}")
            bench.progress(tally.tried())

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work(random.Random(bench.rng.random())))
    seen = (await scene.proxy.seen())[before:]
    met = sum(one["fault"] != "none" for one in seen)
    tally.expect(met >= count, f"{where}: only {met} of {count} requests met the fault")
    doubted = {(one["connection"], one["number"]) for one in seen if one["fault"] not in SOUND_FRAMING | {"none"}}
    # Where the answer was sound after all (a long line, early hints), so is the connection.
    if not any(found.startswith(f"{where}: whole") for found in tally.counts):
        again = [one for one in seen if (one["connection"], one["number"] - 1) in doubted]
        tally.expect(not again, f"{where}: {len(again)} connections were used again")


def _in_short(fault: Fault) -> str:
    return ", ".join(str(value) for name, value in vars(fault).items() if value != getattr(NOTHING, name))


async def _ask(gateway: GatewayProcess, text: str, tokens: int, *, stream: bool) -> Judged:
    expected = " ".join(f"{STEM}{index}" for index in range(tokens))
    body = chat(MODEL, stream=stream, tokens=tokens, content=text)
    connection = await connect(f"http://127.0.0.1:{gateway.port}")
    try:
        response = await connection.ask(post(CHAT, gateway.key, body), DEADLINE_S)
    except TimeoutError:
        return Judged("wrong", f"no end within {DEADLINE_S:g} s")
    except Lost as lost:
        return Judged("wrong", str(lost))
    finally:
        connection.close()
    return judged(response, expected, stream=stream)


def _check_records(gateway: GatewayProcess, tally: Tally) -> None:
    """One record for each request; whole answers are complete there and no others are."""
    records = [record for record in gateway.records() if record.endpoint == CHAT]
    ids = {record.request_id for record in records}
    asked = 2 * tally.tried(0)
    tally.expect(len(records) == len(ids) == asked, f"{len(records)} records of {asked} requests")
    whole = sum(count for name, count in tally.counts.items() if name.endswith(": whole")) + asked // 2
    complete = sum(record.outcome == "complete" for record in records)
    tally.expect(complete == whole, f"{complete} complete in the journal, {whole} whole at the clients")


ROW = Row(
    key="22",
    name="the engine misbehaves in 12 ways",
    claim="Every request ends in the right answer, in OpenAI's error object with 502, 503 or 504, or (a stream that "
    "has begun) in an error event after a right beginning, never in a false [DONE]; a connection whose framing is in "
    "doubt is not used again, the next request is answered whole, no redirect is followed, nothing hangs or crashes.",
    unit="requests",
    full=1200,
    short=48,
    run=run,
    sources=("gateway", "testing/fake_engine.py", "testing/fault_program.py"),
    takes_s=45,
)

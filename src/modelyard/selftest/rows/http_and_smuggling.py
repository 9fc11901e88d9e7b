"""HTTP/1.1 case by case, and every way in which two readers may see the end of a request differently."""

from __future__ import annotations

from modelyard.selftest.bench import Bench, deployment, replica
from modelyard.selftest.cases.framing import BEHIND, FRONT, FramingCase, framing_cases
from modelyard.selftest.cases.http import CASES, HttpCase
from modelyard.selftest.connection import Lost
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row
from modelyard.selftest.wire import Heard, RecordingEngine, say

# More fields that clients send and engines must not see.
_DECORATION = b"x-forwarded-for: 10.0.0.1\r\ncookie: a=b\r\nx-original-url: /admin\r\nte: trailers\r\nvia: 1.1 x\r\n"


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    framings = list(framing_cases())
    bench.rng.shuffle(framings)
    async with RecordingEngine(str(bench.state.sockets / "engine.sock")) as engine:
        gateway = await bench.gateway(deployment(replica(engine.address)))
        for case in CASES:
            for piece_bytes in (0, 1):
                await _http(gateway, case, piece_bytes, tally)
            bench.progress(tally.tried())
        engine.take()
        for framing in framings[: bench.size - len(CASES)]:
            await _framing(gateway, engine, framing, tally)
            bench.progress(tally.tried())
        for broken in engine.broken:
            tally.wrong(f"what reached the engine is no HTTP: {broken}")
    return tally.outcome()


async def _http(gateway: GatewayProcess, case: HttpCase, piece_bytes: int, tally: Tally) -> None:
    heard = await _heard(gateway, case.bytes_with(gateway.key), piece_bytes, tally, case.name, last=not case.closes)
    expected = case.statuses if case.closes else (*case.statuses, 200)
    if heard is not None:
        tally.saw("refused" if case.closes and case.statuses[0] >= 400 else "taken")
        tally.expect(heard.statuses == expected, f"{case.name}: {heard.statuses} instead of {expected}")


async def _framing(gateway: GatewayProcess, engine: RecordingEngine, case: FramingCase, tally: Tally) -> None:
    request = case.bytes_with(gateway.key).replace(b"authorization", _DECORATION + b"authorization", 1)
    heard = await _heard(gateway, request, 0, tally, case.name, last=case.clear)
    got = engine.take()
    contents = [content for one in got for content in (FRONT, BEHIND) if content.encode() in one.body]
    tally.saw("clear" if case.clear else "in doubt")
    if case.clear:
        tally.expect(contents == [FRONT, BEHIND], f"{case.name}: the engine saw {contents}")
        tally.expect(heard is None or heard.statuses == (200, 200, 200), f"{case.name}: {heard and heard.statuses}")
    else:
        tally.expect(not got, f"{case.name}: the engine saw {contents or got}")
        answered = heard is None or all(400 <= status < 500 for status in heard.statuses)
        tally.expect(answered, f"{case.name}: answered {heard and heard.statuses}")
    for one in got:
        tally.expect(not one.not_constructed(), f"{case.name}: the engine saw {one.not_constructed()}")
        tally.expect(one.target == b"/v1/chat/completions", f"{case.name}: the engine was asked for {one.target!r}")


async def _heard(
    gateway: GatewayProcess, request: bytes, piece_bytes: int, tally: Tally, name: str, *, last: bool
) -> Heard | None:
    try:
        return await say(gateway.port, request, piece_bytes=piece_bytes, last=last)
    except (TimeoutError, Lost) as error:
        tally.wrong(f"{name}: {type(error).__name__} {error}")
        return None


ROW = Row(
    key="32",
    name="HTTP/1.1 to the letter, and requests smuggled behind others",
    claim="Valid requests are served and invalid ones refused with the right status, whole and byte by byte; where "
    "length, chunks or Host leave any doubt nothing reaches an engine, and no header field does that we did not write.",
    unit="cases",
    full=len(CASES) + len(list(framing_cases())),
    short=len(CASES) + 250,
    run=run,
    sources=("gateway",),
    takes_s=3,
)

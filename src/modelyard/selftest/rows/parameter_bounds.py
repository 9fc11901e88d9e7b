"""Request fields with values out of bounds, and fields that other servers obey, under both rules for the unknown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from modelyard.selftest.bench import Bench, deployment, replica
from modelyard.selftest.cases.parameters import BAD_CHAT, BAD_COMPLETION, CHAT, COMPLETION, UNKNOWN
from modelyard.selftest.connection import Response, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row
from modelyard.selftest.wire import RecordingEngine

RULES = ("strip", "refuse")
CONTEXT_TOKENS = 8192
WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Case:
    """`name` is set to `value` in a request that is sound otherwise, under one rule; `known` fields have bounds."""

    path: str
    rule: str
    name: str
    value: Any
    known: bool

    def body(self) -> dict[str, Any]:
        sound = {"messages": [{"role": "user", "content": "hello"}]} if self.path == CHAT else {"prompt": "hello"}
        return {"model": self.rule, **sound, self.name: self.value}


def cases() -> Iterator[Case]:
    for rule in RULES:
        for path, table in ((CHAT, BAD_CHAT), (COMPLETION, BAD_COMPLETION)):
            for name, values in table.items():
                yield from (Case(path, rule, name, value, known=True) for value in values)
            for name, value in UNKNOWN.items():
                if name not in table:
                    yield Case(path, rule, name, value, known=False)
        for name in ("max_tokens", "max_completion_tokens"):
            yield Case(CHAT, rule, name, CONTEXT_TOKENS, known=True)


async def run(bench: Bench) -> Outcome:
    tally, every = Tally(), list(cases())
    bench.rng.shuffle(every)
    async with RecordingEngine(str(bench.state.sockets / "engine.sock")) as engine:
        doors = [
            deployment(replica(engine.address), name=rule, unknown_fields=rule, context_tokens=CONTEXT_TOKENS)
            for rule in RULES
        ]
        gateway = await bench.gateway(*doors)
        for case in every[: bench.size]:
            response = await _asked(gateway, case)
            bodies = [request.json() for request in engine.take()]
            _judge(case, response, bodies, tally)
            bench.progress(tally.tried())
    tally.figure("bad fields at the engine", tally.counts["reached the engine"], at_most=0)
    return tally.outcome()


async def _asked(gateway: GatewayProcess, case: Case) -> Response:
    connection = await gateway.connect()
    try:
        return await connection.ask(post(case.path, gateway.key, json.dumps(case.body()).encode()), WITHIN_S)
    finally:
        connection.close()


def _judge(case: Case, response: Response, bodies: list[dict[str, Any]], tally: Tally) -> None:
    what = f"{case.rule} {case.name[:40]!r}={str(case.value)[:60]}"
    if any(case.name in body and body[case.name] == case.value for body in bodies) and case.name != "model":
        tally.saw("reached the engine")
        tally.wrong(f"{what}: reached the engine")
    if not case.known and case.rule == "strip":
        named = "x-modelyard-ignored-fields" in response.headers
        tally.saw("stripped and said")
        tally.expect(response.status == 200 and named, f"{what}: {response.status}, said: {named}")
        return
    if case.value == CONTEXT_TOKENS:
        sent = bodies[0][case.name] if bodies else None
        tally.saw("lowered and said")
        named = response.headers.get("x-modelyard-bounded-fields") == case.name
        tally.expect(named and sent == CONTEXT_TOKENS - 1, f"{what}: sent {sent}, said: {named}")
        return
    tally.saw("refused by name")
    param = response.json().get("error", {}).get("param") if response.status == 400 else None
    tally.expect(response.status == 400, f"{what}: {response.status}")
    tally.expect(param == case.name[:64], f"{what}: the error names {param!r}")
    tally.expect(not bodies, f"{what}: the engine was asked all the same")


ROW = Row(
    key="30",
    name="request fields out of bounds",
    claim="Every value out of bounds is refused with 400 naming the field, or lowered as documented; unknown fields "
    "are left out and named in a header, or refused by name, as the deployment says; the engine sees none of them.",
    unit="cases",
    full=len(list(cases())),
    short=len(list(cases())),
    run=run,
    sources=("gateway",),
    takes_s=3,
)

"""Models and clients that say what looks like our own framing: in answers, in names, in header fields."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from modelyard.observe.journal import read_journal
from modelyard.selftest.bench import MODEL, Bench, deployment, replica
from modelyard.selftest.connection import Connection, Response, connect, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row
from modelyard.selftest.sse_readers import READERS

DEADLINE_S = 20.0
TOKENS = 3
FORGED = "forged-line"
FRAGMENTS = (
    *("\r", "\n", "\r\n", "\n\n", "\r\r", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x00", "\x1b[2J"),
    *("data: [DONE]", "data: [DONE]\n\n", "[DONE]", 'data: {"error":{}}', "event: error", "event: message_stop"),
    *("id: 1", "retry: 1", ": ", "\x1b]0;x\x07", '"', "\\", "\\n", "</script>", "é", "🙂", "0\r\n\r\n", "HTTP/1.1 200"),
    *(f"\n{FORGED}", f'\n{{"schema":"request/v1","request_id":"{FORGED}"}}\n', "word"),
)


@dataclass(frozen=True)
class Way:
    path: str
    stream: bool

    def body(self, content: str) -> dict[str, Any]:
        shared = {"model": MODEL, "stream": self.stream}
        messages = [{"role": "user", "content": content}]
        match self.path:
            case "/v1/completions":
                return {**shared, "prompt": content or "x", "max_tokens": TOKENS}
            case "/v1/responses":
                return {**shared, "input": content or "x", "max_output_tokens": TOKENS}
            case _:
                return {**shared, "messages": messages, "max_tokens": TOKENS}


_LAST = ("response.completed", "response.incomplete")
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
WAYS = tuple(Way(path, stream) for path in PATHS for stream in (True, True, False))


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    engine = await bench.engine(tokens=TOKENS)
    gateway = await bench.gateway(deployment(replica(engine)))
    knobs, client = await connect(engine.address), await gateway.connect()
    for number in range(bench.size):
        text, way = hostile(bench.rng), WAYS[number % len(WAYS)]
        body = json.dumps({"stem": text}).encode()
        turned = await knobs.ask(_knobs(body), DEADLINE_S)
        tally.expect(turned.status == 200, f"the engine does not take {text!r}: {turned.body[:200]!r}")
        if not client.open:
            client = await gateway.connect()
        response = await client.ask(post(way.path, gateway.key, way.body(hostile(bench.rng))), DEADLINE_S)
        for problem in problems(way, response, " ".join(f"{text}{index}" for index in range(TOKENS))):
            tally.wrong(f"case {number}, {way.path}, {'stream' if way.stream else 'plain'}: {problem}: {text!r}")
        tally.saw(f"{way.path}, {'stream' if way.stream else 'plain'}")
        client = await _ask_by_hostile_names(gateway, client, bench.rng, tally)
        bench.progress(tally.tried())
    for connection in (knobs, client):
        connection.close()
    _check_files(gateway, 2 * bench.size, tally)
    return tally.outcome()


def hostile(rng: random.Random) -> str:
    return "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 6)))


def _knobs(body: bytes) -> bytes:
    return b"POST /fake/knobs HTTP/1.1\r\nhost: engine\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def problems(way: Way, response: Response, expected: str) -> list[str]:
    """What is wrong with an answer whose text is known; every reader must find the same, and nothing beside it."""
    if response.status != 200:
        return [f"status {response.status}: {response.body[:200]!r}"]
    try:
        if not way.stream:
            said = _text_of_answer(way.path, response.json())
            return [] if said == expected else [f"another text: {said!r}"]
        found = {name: read(response.body) for name, read in READERS.items()}
        texts = {name: _text_of_stream(way.path, data) for name, data in found.items()}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return [f"{type(error).__name__} {error}"]
    wrong = [f"read by {name}: {text!r}" for name, text in texts.items() if text != expected]
    if len({tuple(data) for data in found.values()}) != 1:
        wrong.append(f"the readers find {sorted({len(data) for data in found.values()})} events")
    return wrong


def _text_of_answer(path: str, value: Any) -> str:
    match path:
        case "/v1/chat/completions":
            return value["choices"][0]["message"]["content"]
        case "/v1/completions":
            return value["choices"][0]["text"]
        case "/v1/messages":
            return "".join(block["text"] for block in value["content"])
        case _:
            return "".join(part["text"] for item in value["output"] for part in item["content"])


def _text_of_stream(path: str, data: list[str]) -> str:
    """Raises ValueError where an event is none of the dialect's, or the end is not exactly one, and the last."""
    if path in PATHS[:2]:
        if data.index("[DONE]") != len(data) - 1:
            raise ValueError("an end before the end")
        choices = [choice for one in data[:-1] for choice in json.loads(one)["choices"]]
        if path == PATHS[1]:
            return "".join(choice["text"] for choice in choices)
        return "".join(choice["delta"].get("content") or "" for choice in choices)
    values = [json.loads(one) for one in data]
    kinds = [value["type"] for value in values]
    is_messages = path == PATHS[2]
    if is_messages and (kinds.count("message_stop") != 1 or kinds[-1] != "message_stop" or "error" in kinds):
        raise ValueError(f"ends with {kinds[-3:]}")
    if not is_messages and (kinds[-1] not in _LAST or sum(map(kinds.count, _LAST)) != 1):
        raise ValueError(f"ends with {kinds[-3:]}")
    deltas = "content_block_delta" if is_messages else "response.output_text.delta"
    pieces = [value["delta"] for value in values if value["type"] == deltas]
    return "".join(piece["text"] if is_messages else piece for piece in pieces)


async def _ask_by_hostile_names(
    gateway: GatewayProcess, client: Connection, rng: random.Random, tally: Tally
) -> Connection:
    """A model that nobody has, and header fields that nobody should believe."""
    fields = [f"{name}: {_field_value(rng)}" for name in ("user-agent", "x-request-id", "traceparent")]
    body = {
        "model": f"{hostile(rng)[:200]}!",
        "messages": [{"role": "user", "content": "x"}],
        "user": hostile(rng)[:99],
    }
    if not client.open:
        client = await gateway.connect()
    response = await client.ask(post(PATHS[0], gateway.key, body, *fields), DEADLINE_S)
    try:
        is_error = response.status in (400, 404) and bool(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        is_error = False
    tally.expect(is_error, f"a hostile name is answered {response.status}: {response.body[:200]!r}")
    odd = [name for name, value in response.headers.items() if FORGED in name or FORGED in value]
    tally.expect(not odd, f"header fields say {odd}")
    return client


def _field_value(rng: random.Random) -> str:
    """What a header field may hold at all; the rest is refused by the parser (row 32)."""
    return "".join(one for one in hostile(rng) if one == "\t" or (one.isprintable() and one.isascii()))


def _check_files(gateway: GatewayProcess, requests: int, tally: Tally) -> None:
    records = gateway.records()
    tally.expect(len(records) == requests, f"{len(records)} records of {requests} requests")
    tally.expect(read_journal(gateway.state.journal).unreadable == 0, "the journal holds lines that are no records")
    tally.expect(not any(FORGED in record.request_id for record in records), "the journal holds a forged record")
    forged = [line for line in gateway.printed().splitlines() if line.startswith(FORGED)]
    tally.expect(not forged, f"{len(forged)} forged lines in the log")


ROW = Row(
    key="37",
    name="text that looks like framing",
    claim="Answers that hold line ends of every kind, `data: [DONE]`, events, chunk ends and terminal sequences reach "
    "four kinds of readers text for text, with no event beside; hostile names and header fields forge no line of a "
    "log, no record and no header field.",
    unit="cases",
    full=5_000,
    short=120,
    run=run,
    sources=("gateway", "testing/fake_engine.py"),
    takes_s=15,
)

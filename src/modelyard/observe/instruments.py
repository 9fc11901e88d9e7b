"""Every metric that we offer, once: its OpenTelemetry name, from which its Prometheus name follows.

Names, attributes and buckets of `gen_ai.*`: OpenTelemetry's semantic conventions for generative AI (status:
development). The way to Prometheus: OpenTelemetry's specification, "Prometheus and OpenMetrics Compatibility"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
OUTPUT_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(float(4**power) for power in range(14))
QUEUE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

_UNITS = {"s": "_seconds", "By": "_bytes"}
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_]")


@dataclass(frozen=True, slots=True)
class Instrument:
    """`unit` is UCUM's, in braces where it only annotates; `attributes` are OpenTelemetry's names of the labels."""

    name: str
    kind: Kind
    unit: str
    text: str
    attributes: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """The name of the metric family in Prometheus; samples of a counter add `_total`."""
        name, suffix = _NOT_IN_A_NAME.sub("_", self.name), _UNITS.get(self.unit, "")
        return name if name.endswith(suffix) else name + suffix

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(_NOT_IN_A_NAME.sub("_", attribute) for attribute in self.attributes)


_OPERATION = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")

SERVER_DURATION = Instrument(
    "gen_ai.server.request.duration",
    "histogram",
    "s",
    "What a client saw of a request: from its first byte to the last byte of its answer, the queue included.",
    (*_OPERATION, "error.type"),
    DURATION_S,
)
CLIENT_DURATION = Instrument(
    "gen_ai.client.operation.duration",
    "histogram",
    "s",
    "What we saw of the engine: from the end of the queue to the last byte.",
    (*_OPERATION, "error.type"),
    DURATION_S,
)
FIRST_TOKEN = Instrument(
    "gen_ai.server.time_to_first_token",
    "histogram",
    "s",
    "From a request's first byte to the first byte of its stream; complete streams only.",
    _OPERATION,
    FIRST_TOKEN_S,
)
OUTPUT_TOKEN = Instrument(
    "gen_ai.server.time_per_output_token",
    "histogram",
    "s",
    "Time for each token after the first; complete streams only.",
    _OPERATION,
    OUTPUT_TOKEN_S,
)
TOKEN_USAGE = Instrument(
    "gen_ai.client.token.usage",
    "histogram",
    "{token}",
    "Tokens of a request, where the engine has counted them.",
    (*_OPERATION, "gen_ai.token.type"),
    TOKENS,
)
REQUESTS = Instrument(
    "modelyard.requests",
    "counter",
    "{request}",
    "Finished requests.",
    ("deployment", "replica", "code", "outcome"),
)
REFUSALS = Instrument(
    "modelyard.refusals",
    "counter",
    "{request}",
    "Requests that were turned away, by the code that the client was told.",
    ("deployment", "reason"),
)
QUEUE = Instrument("modelyard.request.queue", "histogram", "s", "Waiting for a replica.", ("deployment",), QUEUE_S)
PROMPT_TOKENS = Instrument(
    "modelyard.prompt_tokens",
    "counter",
    "{token}",
    "Prompt tokens, those from the prefix cache included. `source`: who counted.",
    ("deployment", "source"),
)
CACHED_TOKENS = Instrument(
    "modelyard.cached_prompt_tokens",
    "counter",
    "{token}",
    "Prompt tokens that came from the prefix cache. `source`: who counted.",
    ("deployment", "source"),
)
COMPLETION_TOKENS = Instrument(
    "modelyard.completion_tokens",
    "counter",
    "{token}",
    "Tokens of answers. `source`: who counted.",
    ("deployment", "source"),
)
COST = Instrument(
    "modelyard.cost",
    "counter",
    "{currency}",
    "What answers cost, in the currency of the prices; exact to its millionth of a millionth.",
    ("deployment",),
)
RETRIES = Instrument(
    "modelyard.retries",
    "counter",
    "{attempt}",
    "Sendings that brought no answer to the client, by replica and what became of them. `hedge_lost`: a hedge in vain; "
    "`outrun`: a hedge was faster.",
    ("deployment", "replica", "kind"),
)
RESUMPTIONS = Instrument(
    "modelyard.resumptions",
    "counter",
    "{resumption}",
    "Answers that went on at another replica in the middle.",
    ("deployment",),
)
UNREADABLE = Instrument("modelyard.journal.unreadable_lines", "counter", "{line}", "Journal lines that hold no record.")
REPLICA_STATE = Instrument(
    "modelyard.replica.state",
    "gauge",
    "{state}",
    "1 for the state a replica is in.",
    ("deployment", "replica", "state"),
)

REPLICA_SEATS = Instrument(
    "modelyard.replica.seats",
    "gauge",
    "{request}",
    "Requests that a replica is given at once, when it was last chosen from: fewer than planned while its first tokens "
    "come late.",
    ("deployment", "replica"),
)


def _of_engine(name: str, unit: str, text: str) -> Instrument:
    return Instrument(f"modelyard.engine.{name}", "gauge", unit, text, ("deployment", "replica"))


# By the field of `EngineMetrics`.
ENGINE = {
    "running": _of_engine("running_requests", "{request}", "Requests that the engine works on."),
    "waiting": _of_engine("waiting_requests", "{request}", "Requests that wait inside the engine."),
    "work_done": _of_engine(
        "work_done_tokens", "{token}", "Tokens processed since the engine started: rises while it lives."
    ),
    "prompt_tokens": _of_engine("prompt_tokens", "{token}", "Prompt tokens processed since the engine started."),
    "generated_tokens": _of_engine("generated_tokens", "{token}", "Tokens generated since the engine started."),
    "kv_used_ratio": _of_engine("kv_used_ratio", "1", "Used part of the KV cache, 0 to 1."),
}

INSTRUMENTS = (
    SERVER_DURATION,
    CLIENT_DURATION,
    FIRST_TOKEN,
    OUTPUT_TOKEN,
    TOKEN_USAGE,
    REQUESTS,
    REFUSALS,
    QUEUE,
    PROMPT_TOKENS,
    CACHED_TOKENS,
    COMPLETION_TOKENS,
    COST,
    RETRIES,
    RESUMPTIONS,
    UNREADABLE,
    REPLICA_STATE,
    REPLICA_SEATS,
    *ENGINE.values(),
)
BY_FAMILY = {one.family: one for one in INSTRUMENTS}

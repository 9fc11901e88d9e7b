"""What a FaultProxy can do to an answer, and which request it does it to. Standard library only: the proxy's process
imports this by path."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

MIB = 1 << 20

# Each kind, and which fields of Fault it reads besides those that choose requests.
KINDS: dict[str, str] = {
    "none": "the answer as it is",
    "latency": "the first byte comes `delay_s` later",
    "bandwidth": "at most `bytes_per_s`, evenly, from the first byte on",
    "slices": "every `size_bytes` (1 unless set) bytes alone, `delay_s` apart",
    "reset": "the connection is reset after `at_byte` bytes; closed, on a unix socket",
    "early-eof": "the connection is closed after `at_byte` bytes",
    "hang": "nothing comes any more after `at_byte` bytes, and the connection stays open",
    "bad-chunk": "after `count` sound chunks comes one whose size is no number",
    "wrong-length": "Content-Length says `size_bytes` (10 unless set) more than there are; then it is closed",
    "short-length": "Content-Length says `size_bytes` (10 unless set) less than there are",
    "extra-bytes": "after the whole answer come `size_bytes` (10 unless set) bytes more",
    "empty-200": "a 200 with the right type and not a byte of body",
    "html-502": "a 502 with a page of HTML",
    "bad-json": "JSON that ends in the middle, in a body or the event after `count` others, framed well",
    "split-utf8": "every character of several bytes is torn between two writes; nothing is lost",
    "bad-utf8": "one byte of a body, or of the event after `count` others, is no UTF-8",
    "long-line": "an event after `count` others, or a string in a body, of `size_bytes` (10 MiB unless set)",
    "no-done": "the event stream ends well framed, without its last event",
    "informational": "`count` (1 unless set) heads with status 103 before the answer",
    "redirect": "a 307 to `location`",
}
# What `size_bytes` and `count` are where they are left out.
_SIZES = {"slices": 1, "wrong-length": 10, "short-length": 10, "extra-bytes": 10, "long-line": 10 * MIB}
_COUNTS = {"informational": 1, "bad-json": 1, "bad-utf8": 1, "long-line": 1}
_ACCEPTED: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "int | None": (int, type(None)),
}


class BadPlan(ValueError):
    """No such fault, or a value that it cannot take; the message says which."""


@dataclass(frozen=True)
class Fault:
    """One fault, and the requests that it happens to: those whose path begins with `path` and whose body contains
    `text`, but not the first `skip` of them, a `share` of the others by chance, at most `times` (None: all).

    Bytes count from the first byte of the response's head."""

    kind: str
    at_byte: int = 0
    delay_s: float = 0.0
    bytes_per_s: int = 1000
    size_bytes: int = 0
    count: int = 0
    location: str = "http://127.0.0.1:9/"
    path: str = "/v1/"
    text: str = ""
    skip: int = 0
    share: float = 1.0
    times: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadPlan(f"kind: one of {', '.join(KINDS)}, not {self.kind!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, _ACCEPTED[str(field.type)]):
                raise BadPlan(f"{field.name}: wants {field.type}, not {value!r}")
            if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise BadPlan(f"{field.name}: wants a number ≥ 0, not {value!r}")
        if self.bytes_per_s == 0 or self.share > 1:
            raise BadPlan("bytes_per_s: wants at least 1; share: wants at most 1")

    @property
    def size(self) -> int:
        return self.size_bytes or _SIZES.get(self.kind, 0)

    @property
    def number(self) -> int:
        return self.count or _COUNTS.get(self.kind, 0)


NOTHING = Fault(kind="none")


class Plan:
    """Faults in order: the first that is meant for a request happens to it. The same seed and the same requests in the
    same order meet the same faults."""

    def __init__(self, faults: Sequence[Fault] = (), seed: int = 0) -> None:
        self.faults = tuple(faults)
        self._met = [0] * len(self.faults)
        self._done = [0] * len(self.faults)
        self._rng = random.Random(seed)

    def fault_for(self, path: str, body: bytes) -> Fault:
        for index, fault in enumerate(self.faults):
            if not path.startswith(fault.path) or fault.text.encode() not in body:
                continue
            self._met[index] += 1
            if self._met[index] <= fault.skip or (fault.times is not None and self._done[index] >= fault.times):
                continue
            if fault.share < 1 and self._rng.random() >= fault.share:
                continue
            self._done[index] += 1
            return fault
        return NOTHING


def written(faults: Sequence[Fault], seed: int) -> dict[str, Any]:
    """A plan as JSON: `{"seed": 1, "faults": [{"kind": "reset", "at_byte": 300}]}`."""
    return {"seed": seed, "faults": [asdict(fault) for fault in faults]}


def read_plan(text: bytes) -> Plan:
    """Raises BadPlan, which names what is wrong."""
    try:
        value = json.loads(text)
        return Plan([Fault(**fault) for fault in value.get("faults", ())], int(value.get("seed", 0)))
    except BadPlan:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise BadPlan(f"not a plan: {error}") from None

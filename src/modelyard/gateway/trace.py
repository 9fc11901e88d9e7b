"""The trace that a request belongs to: read strictly from what a client sends, written anew for the engine.

W3C Trace Context, sections "Traceparent Header", "Tracestate Header" and "Processing Model". A client that sends none
costs nothing here: its request's trace follows from its id, and is worked out by whoever shows it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

MOST_MEMBERS = 32
STATE_BYTES = 512
# Entries longer than this go first where the state is too long.
LONG_MEMBER_BYTES = 128

# A version that is not ours may say more behind the flags; nothing of that is read.
_TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)
_MEMBER = re.compile(
    rb"([a-z0-9][a-z0-9_\-*/@]{0,255})=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)
_SPAN_OF_REQUEST = re.compile(r"req_([0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class Trace:
    """Where the caller's span stands: hex ids, and whether the caller recorded it. `state` is a checked tracestate."""

    trace_id: str
    parent_id: str
    sampled: bool
    state: bytes = b""

    def parent(self) -> str:
        """As it stands in a request's record."""
        return f"{self.parent_id}-{self.sampled:02d}"

    def onward(self, request_id: str) -> bytes:
        """The header lines for the engine: the same trace, with our span as the parent."""
        lines = f"traceparent: 00-{self.trace_id}-{span_id(request_id)}-{self.sampled:02d}\r\n".encode()
        return lines + b"tracestate: %b\r\n" % self.state if self.state else lines


def parse(traceparent: bytes, tracestate: bytes = b"") -> Trace | None:
    """None where `traceparent` is not valid: then the trace begins here, and `tracestate` is not looked at.

    A `tracestate` that is not valid is left out; it costs nothing else."""
    match = _TRACEPARENT.fullmatch(traceparent.strip(b" \t"))
    if match is None or (match[1] == b"00" and match[5] is not None):
        return None
    sampled = bool(int(match[4], 16) & 1)
    return Trace(match[2].decode(), match[3].decode(), sampled, _checked(tracestate) if tracestate else b"")


def span_id(request_id: str) -> str:
    """Our span's 16 hex digits. Those of a request id are unique already."""
    match = _SPAN_OF_REQUEST.fullmatch(request_id)
    return match[1] if match is not None else hashlib.sha256(request_id.encode()).hexdigest()[:16]


def _checked(tracestate: bytes) -> bytes:
    """Built from its members, each checked; b"" where one is wrong. Too long a state loses whole members."""
    members = dict[bytes, bytes]()
    for text in tracestate.split(b","):
        if not (stripped := text.strip(b" \t")):
            continue
        match = _MEMBER.fullmatch(stripped)
        if match is None:
            return b""
        members.setdefault(match[1], stripped)
    if len(members) > MOST_MEMBERS:
        return b""
    return _within(list(members.values()))


def _within(members: list[bytes]) -> bytes:
    state = b",".join(members)
    if len(state) > STATE_BYTES:
        members = [one for one in members if len(one) <= LONG_MEMBER_BYTES]
        while len(state := b",".join(members)) > STATE_BYTES:
            members.pop()
    return state

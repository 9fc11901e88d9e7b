"""What a request asks for: everything that can be said of it before a seat is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic as now
from types import MappingProxyType

import msgspec

from modelyard.gateway.accounts import Account, Reservation
from modelyard.gateway.admission import Admission, Asking
from modelyard.gateway.caps import hold_to
from modelyard.gateway.dialects.dialect import Speaker
from modelyard.gateway.dialects.registry import READERS
from modelyard.gateway.dialects.ways import direct, spoken
from modelyard.gateway.estimate import estimated, may_use
from modelyard.gateway.fields import AnyCall, parse, usage_asked, warning_of
from modelyard.gateway.limits import FIELDS
from modelyard.gateway.refusals import unknown_model
from modelyard.gateway.request import Request
from modelyard.gateway.resumption import Resumable, resumable
from modelyard.gateway.strict_json import reading
from modelyard.gateway.trace import parse as parse_trace
from modelyard.gateway.turns import Work
from modelyard.gateway.worker import Worker
from modelyard.records.topology import Deployment

_NONE: frozenset[str] = frozenset()


class Asked:
    """A request, and what its check found. `admission` is the door to ask at, `asking` what it is told; `endpoint`,
    `body` and `speaker` are the engine's side of it, `names` the client's words for the engine's fields, `warning`
    header lines for whatever is answered. What most requests lack are class attributes: an instance holds only what is
    its own."""

    stream = usage_asked = False
    admission: Admission | None = None
    asking = Asking()
    endpoint = ""
    body = b""
    speaker: Speaker | None = None
    resumable: Resumable | None = None
    names: Mapping[str, str] = MappingProxyType({})
    warning = b""
    reservation: Reservation | None = None
    trace_id = trace_parent = ""
    trace_lines = b""

    def __init__(self, worker: Worker, request: Request) -> None:
        self.worker, self.request = worker, request

    def read_body(self) -> Work:
        """Find out step by step what the body holds. Raises Refusal (400)."""
        self.request.read = yield from reading(self.request.body, FIELDS)

    def check(self) -> Admission:
        """All that can be refused before a seat is asked for. Returns the door to ask at."""
        request, worker = self.request, self.worker
        if request.traceparent:
            self._join_trace(request)
        endpoint = request.route.endpoint
        reader = READERS.get(endpoint)
        body = request.read or request.body
        asked = reader(body, request.id) if reader is not None else None
        parsed = parse(body, endpoint) if asked is None else asked.parsed
        parsed.key_id = request.key.id
        call = parsed.call
        self.stream = call.stream is True
        self.usage_asked = self.stream and usage_asked(call)
        admission = worker.admissions.get(call.model)
        if admission is None:
            raise unknown_model(call.model)
        self.admission = admission
        worker.keyring.authorize(request.key, call.model, endpoint)
        deployment = admission.deployment
        self.authorized(deployment)
        terms = worker.keyring.terms(request.key)
        if terms.max_tokens is not None:
            hold_to(
                terms.max_tokens, parsed, asked.names if asked is not None else self.names, deployment.context_tokens
            )
        sending = direct(parsed, endpoint, deployment) if asked is None else spoken(asked, deployment)
        self.endpoint, self.body, self.speaker = sending.endpoint, sending.body, sending.speaker
        self.names = sending.names
        if self.stream and asked is None and deployment.policy.failover.on_broken_stream == "resume":
            self.resumable = self._kept_for_resumption(call, deployment)
        if request.route.shape == "anthropic":
            self.warning = b"request-id: %b\r\n" % request.id.encode()
        if asked is not None and asked.stripped:
            parsed.stripped = parsed.stripped | asked.stripped
        if parsed.stripped or parsed.bounded:
            self.warning += warning_of(parsed)
        prompt, answers = estimated(call, len(request.body), deployment.context_tokens)
        self.asking = Asking(terms.share, terms.priority, prompt + answers, _NONE, terms.weight, len(self.body))
        if line := worker.accounts.line(request.key):
            self._reserve(line, prompt, answers, deployment)
        return admission

    def authorized(self, deployment: Deployment) -> None:
        """Its key may ask for this deployment."""

    def _kept_for_resumption(self, call: AnyCall, deployment: Deployment) -> Resumable | None:
        chunked = self.request.chunked_allowed
        found = resumable(call, self.endpoint, deployment, self.body, self.speaker, chunked=chunked)
        self.speaker = found or self.speaker
        return found

    def _join_trace(self, request: Request) -> None:
        """The client's trace goes on through us to the engine."""
        trace = parse_trace(request.traceparent, request.tracestate)
        if trace is not None:
            self.trace_id, self.trace_parent = trace.trace_id, trace.parent()
            self.trace_lines = trace.onward(request.id)

    def _reserve(self, line: tuple[Account, ...], prompt: int, answers: int, deployment: Deployment) -> None:
        asked, at = may_use(prompt, answers, deployment.policy.prices, self.request.at), now()
        self.reservation = reservation = self.worker.accounts.reserve(line, asked, at, self.request.id)
        if reservation.wanted is not None:
            self.asking = msgspec.structs.replace(self.asking, wanted=reservation.wanted)

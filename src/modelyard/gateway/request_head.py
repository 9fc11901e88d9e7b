"""What the head of a request says, and all that can be refused by it alone: before a byte of the body is read."""

from __future__ import annotations

from modelyard.gateway.limits import WireLimits
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.request import Request
from modelyard.gateway.routes import find, is_host, origin_form
from modelyard.gateway.worker import Worker


def take_field(request: Request, name: bytes, value: bytes) -> None:
    """Keep what a header field says, where it says anything to us. Raises Refusal (400)."""
    lowered = name.lower()
    if lowered == b"authorization":
        request.two_secrets = bool(request.secret)
        request.secret = value.decode("latin-1")
    elif lowered == b"x-api-key":
        # How Anthropic's clients send it; beside an Authorization it would be a second one.
        request.two_secrets = bool(request.secret)
        request.secret = "Bearer " + value.decode("latin-1")
    elif lowered == b"host":
        request.hosts += 1
        request.host = value.strip(b" \t")
    elif lowered == b"content-length":
        request.content_length = int(value)
        request.has_body = request.content_length > 0
    elif lowered == b"transfer-encoding":
        request.has_body = request.is_chunked = True
        if value.strip().lower() != b"chunked":
            raise Refusal(400, "transfer-encoding can only be chunked", code="bad_request", close=True)
    elif lowered == b"content-encoding":
        request.coded = request.coded or value.strip().lower() != b"identity"
    elif lowered == b"expect":
        request.expects = value.strip().lower() == b"100-continue"
    elif lowered == b"traceparent":
        # Two of them are none: nobody can tell which is meant.
        request.traceparent = b"-" if request.traceparent else value
    elif lowered == b"tracestate":
        request.tracestate = request.tracestate + b"," + value if request.tracestate else value
    elif b"_" in name:
        # Some programs take `_` and `-` for the same: they would read content_length as a length.
        shown = name.decode("latin-1")[:64]
        raise Refusal(400, f"no underscore in a field's name: {shown}", code="bad_request", close=True)


def check_head(request: Request, version: str, worker: Worker, *, upgrades: bool) -> None:
    """Find the route and the key of a request whose head is whole; `upgrades`: it asks for another protocol. Raises
    Refusal."""
    if version not in ("1.0", "1.1"):
        raise Refusal(505, "only HTTP/1.1 is served here", code="bad_request", close=True)
    if request.hosts > 1 or (request.hosts == 0 and version == "1.1"):
        raise Refusal(400, "exactly one Host is needed", code="bad_request", close=True)
    if request.hosts and not is_host(request.host):
        raise Refusal(400, "this is no Host: a name or an address, perhaps with a port", code="bad_request", close=True)
    if upgrades:
        raise Refusal(400, "no upgrade is served here", code="bad_request", close=True)
    if not request.target.startswith(b"/"):
        request.target = origin_form(request.target, request.host)
    request.route = route = find(request.method, request.target)
    if not route.open_to_all:
        if request.two_secrets:
            raise Refusal(401, "send one key, once", code="invalid_api_key", close=True)
        request.key = worker.authenticate(request.secret)
        request.admitted = True
        if worker.pressure.level and route.kind == "inference":
            worker.check_load(worker.keyring.terms(request.key).priority)
    if request.content_length > worker.wire.body_bytes:
        raise body_too_large(worker.wire)
    if request.coded:
        raise Refusal(415, "send the body without content-encoding", code="bad_request", close=True)


def head_too_large() -> Refusal:
    return Refusal(431, "the request head is too large", code="head_too_large", close=True)


def body_too_large(wire: WireLimits) -> Refusal:
    most = wire.body_bytes
    return Refusal(413, f"the body is larger than {most} bytes", code="body_too_large", close=True)

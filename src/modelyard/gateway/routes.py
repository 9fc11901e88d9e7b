"""What can be asked. A route object carries its own authorisation; whatever has no route does not exist."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from modelyard.gateway.refusals import Refusal, Shape

Kind = Literal["inference", "models", "model", "health", "ready"]


@dataclass(frozen=True, slots=True)
class Route:
    """`endpoint` is the path as declared; `open_to_all` is the only way around a key; `shape` is that of errors."""

    method: str
    endpoint: str
    kind: Kind
    open_to_all: bool = False
    shape: Shape = "openai"


ROUTES = (
    Route("POST", "/v1/chat/completions", "inference"),
    Route("POST", "/v1/completions", "inference"),
    Route("POST", "/v1/responses", "inference"),
    Route("POST", "/v1/messages", "inference", shape="anthropic"),
    Route("POST", "/v1/messages/count_tokens", "inference", shape="anthropic"),
    Route("POST", "/v1/embeddings", "inference"),
    Route("POST", "/v1/rerank", "inference"),
    Route("POST", "/tokenize", "inference"),
    Route("POST", "/detokenize", "inference"),
    Route("GET", "/v1/models", "models"),
    Route("GET", "/v1/models/", "model"),
    Route("GET", "/health", "health", open_to_all=True),
    Route("GET", "/ready", "ready", open_to_all=True),
)
INFERENCE = frozenset(route.endpoint for route in ROUTES if route.kind == "inference")
_EXACT = {(route.method.encode(), route.endpoint.encode()): route for route in ROUTES if route.kind != "model"}
_METHODS = {path: method.decode() for method, path in _EXACT}
_MODEL = next(route for route in ROUTES if route.kind == "model")


def find(method: bytes, target: bytes) -> Route:
    """The route of a request target as sent (its query is ignored). Raises Refusal (404 or 405).

    Targets are compared byte for byte: no decoding, no normalising, so nothing can look like a route to one reader and
    not to another."""
    path = target.partition(b"?")[0]
    route = _EXACT.get((method, path))
    if route is not None:
        return route
    if path.startswith(b"/v1/models/") and len(path) > len(b"/v1/models/"):
        if method == b"GET":
            return _MODEL
        raise _other_method("GET")
    if path in _METHODS:
        raise _other_method(_METHODS[path])
    raise Refusal(404, "there is nothing here", code="not_found")


# RFC 9112 section 3.2.2. What a name may hold is narrower here than RFC 3986 allows: no percent, no delimiters.
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
_DEFAULT_PORT = re.compile(rb":(?:80|443)$")


def is_host(value: bytes) -> bool:
    """Whether a Host field names a host. No route ever depends on which: a bad one is refused because others might."""
    return _HOST.fullmatch(value) is not None


def origin_form(target: bytes, host: bytes) -> bytes:
    """The path and query of a target in absolute form (as proxies are sent it); any other target as it is. Raises
    Refusal (400) where it names another host than `host` does."""
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return target
    named = absolute[1]
    if not is_host(named) or (host and _bare(named) != _bare(host)):
        raise Refusal(400, "the target names another host than Host does", code="bad_request", close=True)
    return absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]


def _bare(host: bytes) -> bytes:
    return _DEFAULT_PORT.sub(b"", host.lower())


def _other_method(allowed: str) -> Refusal:
    return Refusal(405, "this method is not served here", code="method_not_allowed", allow=allowed)

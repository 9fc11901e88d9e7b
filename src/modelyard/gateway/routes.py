"""What can be asked. A route object carries its own authorisation; whatever has no route does not exist."""

from __future__ import annotations

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


def _other_method(allowed: str) -> Refusal:
    return Refusal(405, "this method is not served here", code="method_not_allowed", allow=allowed)

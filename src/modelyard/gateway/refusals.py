"""How the gateway says no: one exception, in our own words: no trace of an engine leaks.

Its body has OpenAI's shape, or Anthropic's on the routes that are Anthropic's."""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal

import msgspec

from modelyard.gateway.heads import head
from modelyard.records.decision import Admitted

Shape = Literal["openai", "anthropic"]
POISON_REQUEST = "poison_request"
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Refusal(Exception):
    """A request that ends with `status` and an error. `close` also ends the connection; `fields` are more header
    fields, names and values. `admitted` is the
    decision of the door, where that refused."""

    admitted: Admitted | None = None

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: int | None = None,
        close: bool = False,
        allow: str = "",
        fields: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s, self.close, self.allow = retry_after_s, close, allow
        self.fields = fields

    def body(self) -> bytes:
        return error_body(self.status, self.message, code=self.code, param=self.param)

    def response(self, request_id: str, *, keep_alive: bool, shape: Shape = "openai") -> bytes:
        """The whole response, head and body."""
        openai = shape == "openai"
        body = self.body() if openai else anthropic_error_body(self.status, self.message, request_id)
        fields = [("content-type", "application/json"), ("content-length", str(len(body))), *self.fields]
        if not openai:
            fields.append(("request-id", request_id))
        if self.retry_after_s is not None:
            fields.append(("retry-after", str(self.retry_after_s)))
        if self.allow:
            fields.append(("allow", self.allow))
        if self.status == HTTPStatus.UNAUTHORIZED:
            fields.append(("www-authenticate", "Bearer"))
        return head(self.status, fields, request_id, keep_alive=keep_alive and not self.close) + body


def error_body(status: int, message: str, *, code: str | None, param: str | None = None) -> bytes:
    """The JSON that OpenAI's clients turn into their typed errors."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def anthropic_error_body(status: int, message: str, request_id: str) -> bytes:
    """The JSON that Anthropic's clients turn into their typed errors."""
    kind = _ANTHROPIC_KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})


def error_event(message: str, *, code: str) -> bytes:
    """A server-sent event for a stream that cannot go on; never followed by [DONE]."""
    return b"data: " + error_body(500, message, code=code) + b"\n\n"


def poison_request(deaths: int, left_s: float) -> Refusal:
    """A request that has ended its engine so many times is not sent to another one."""
    message = (
        f"this request has ended the engine {deaths} times and is not sent again for {max(1, round(left_s / 60))} min: "
        "change it, or report it to whoever runs this gateway"
    )
    return Refusal(422, message, code=POISON_REQUEST)


def unknown_model(name: str) -> Refusal:
    """The same for a name that nobody has and for one that the key may not use: who asks learns of no other's."""
    message = f"the model {name[:128]!r} does not exist here, or this key may not use it"
    return Refusal(404, message, code="model_not_found", param="model")


def invalid(message: str, param: str | None = None) -> Refusal:
    return Refusal(400, message, code="invalid_value", param=param)


def unavailable(message: str, *, retry_after_s: int, code: str = "unavailable", close: bool = False) -> Refusal:
    return Refusal(503, message, code=code, retry_after_s=retry_after_s, close=close)

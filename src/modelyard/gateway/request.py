"""A request as received, and what a connection remembers of the last one."""

from __future__ import annotations

from collections.abc import Callable

from modelyard.gateway.keyring import ANONYMOUS, Keyring
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.repeated_head import RepeatedHead
from modelyard.gateway.routes import Route
from modelyard.gateway.strict_json import ReadBody
from modelyard.records.keys import KeyRecord

_NO_ROUTE = Route("", "", "health", open_to_all=True)


class Request:
    """One request as received. `target` is the request target as sent; `admitted` once its key was accepted; `read` is
    what its body holds, where that was found out beforehand.

    What most requests leave untouched are class attributes: an instance holds only what is its own."""

    method = b""
    target = b""
    host = b""
    secret = ""
    body = b""
    read: ReadBody | None = None
    traceparent = tracestate = b""
    hosts = 0
    head_bytes = 0
    content_length = 0
    received = 0
    unproductive = 0
    framing = 0
    coded = expects = has_body = is_chunked = admitted = two_secrets = False
    keep_alive = chunked_allowed = True
    refusal: Refusal | None = None
    route: Route = _NO_ROUTE
    key: KeyRecord = ANONYMOUS

    def __init__(self, request_id: str, at: float, began: float) -> None:
        self.id, self.at, self.began = request_id, at, began


Arrival = Callable[[], Request]


class HeadMemo:
    """What the last head of a connection meant: its route and its key, as long as no key has changed or expired."""

    __slots__ = ("_expires_at", "_head", "_key", "_keyring", "_route", "_version")

    def __init__(self, head: RepeatedHead, request: Request, keyring: Keyring) -> None:
        self._head = head
        self._route, self._key = request.route, request.key
        self._keyring, self._version = keyring, keyring.version
        self._expires_at = keyring.expires_at(request.key, request.at)

    @classmethod
    def of(cls, data: bytes, request: Request, keyring: Keyring) -> HeadMemo | None:
        """A memo of the head that `data` begins with; None where there is more to it than a plain call, or a trace: the
        next head has another one."""
        if request.traceparent or request.expects or request.coded or not request.keep_alive:
            return None
        head = RepeatedHead.of(data)
        return cls(head, request, keyring) if head is not None else None

    def repeated(self, data: bytes, arrival: Arrival) -> Request | None:
        """The request that `data` holds if it is whole and its head is the same again."""
        body = self._head.body(data)
        if body is None or self._version != self._keyring.version:
            return None
        request = arrival()
        if request.at >= self._expires_at:
            return None
        request.route, request.key, request.admitted = self._route, self._key, True
        request.body = body
        return request

"""A request as received, and what a connection remembers of the last one."""

from __future__ import annotations

from collections.abc import Callable

from modelyard.gateway.keyring import ANONYMOUS, Keyring
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.routes import Route
from modelyard.records.keys import KeyRecord

_NO_ROUTE = Route("", "", "health", open_to_all=True)


class Request:
    """One request as received. `target` is the request target as sent; `admitted` once its key was accepted.

    What most requests leave untouched are class attributes: an instance holds only what is its own."""

    method = b""
    target = b""
    secret = ""
    body = b""
    hosts = 0
    head_bytes = 0
    content_length = 0
    received = 0
    unproductive = 0
    coded = expects = has_body = admitted = two_secrets = False
    keep_alive = chunked_allowed = True
    refusal: Refusal | None = None
    route: Route = _NO_ROUTE
    key: KeyRecord = ANONYMOUS

    def __init__(self, request_id: str, at: float, began: float) -> None:
        self.id, self.at, self.began = request_id, at, began


Arrival = Callable[[], Request]


class HeadMemo:
    """The last head of a connection, split around the digits of its Content-Length.

    A client repeats its head on a kept-alive connection, all but that number. Bytes that are the same mean the same:
    the route and the key need not be found again, as long as no key has changed or expired meanwhile."""

    __slots__ = ("_after", "_before", "_digits_at", "_expires_at", "_key", "_keyring", "_route", "_version")

    def __init__(self, before: bytes, after: bytes, request: Request, keyring: Keyring) -> None:
        self._before, self._after, self._digits_at = before, after, len(before)
        self._route, self._key = request.route, request.key
        self._keyring, self._version = keyring, keyring.version
        self._expires_at = keyring.expires_at(request.key)

    @classmethod
    def of(cls, data: bytes, request: Request, keyring: Keyring) -> HeadMemo | None:
        """A memo of the head that `data` begins with; None where there is more to it than a plain call."""
        head = data[: data.find(b"\r\n\r\n") + 4]
        lowered = head.lower()
        name = b"\r\ncontent-length: "
        if request.expects or request.coded or not request.keep_alive:
            return None
        if lowered.count(name) != 1 or head.count(b"\n") != head.count(b"\r\n"):
            return None
        start = lowered.find(name) + len(name)
        end = head.find(b"\r", start)
        return cls(head[:start], head[end:], request, keyring) if head[start:end].isdigit() else None

    def repeated(self, data: bytes, arrival: Arrival) -> Request | None:
        """The request that `data` holds if it is whole and its head is the same again."""
        start = self._digits_at
        if not data.startswith(self._before):
            return None
        end = data.find(b"\r", start, start + 12)
        if end < 0 or not data.startswith(self._after, end):
            return None
        digits = data[start:end]
        body_at = end + len(self._after)
        if not digits.isdigit() or int(digits) != len(data) - body_at or self._version != self._keyring.version:
            return None
        request = arrival()
        if request.at >= self._expires_at:
            return None
        request.route, request.key, request.admitted = self._route, self._key, True
        request.body = data[body_at:]
        return request

"""Response heads, always constructed: no header field of an engine or of a client is ever copied through."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_CLOSE = b"connection: close\r\n"


def head(status: int, fields: Iterable[tuple[str, str]], request_id: str, *, keep_alive: bool) -> bytes:
    """A response head with the blank line that ends it."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    connection = "" if keep_alive else "connection: close\r\n"
    return f"{_STATUS_LINES[status]}{lines}x-request-id: {request_id}\r\n{connection}\r\n".encode("latin-1")


def json_response(body: bytes, request_id: str, warning: bytes, *, keep_alive: bool) -> bytes:
    """A whole 200 with a JSON body. `warning` is a header line or nothing."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%bx-request-id: %b\r\n%b\r\n%b"
        % (len(body), warning, request_id.encode(), b"" if keep_alive else _CLOSE, body)
    )


def stream_head(request_id: str, warning: bytes, *, keep_alive: bool, chunked: bool) -> bytes:
    """The head of a 200 event stream. A client of HTTP/1.0 knows no chunks: there the end of the connection ends it."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n%bcache-control: no-store\r\n"
        b"x-accel-buffering: no\r\n%bx-request-id: %b\r\n%b\r\n"
        % (
            b"transfer-encoding: chunked\r\n" if chunked else b"",
            warning,
            request_id.encode(),
            b"" if keep_alive and chunked else _CLOSE,
        )
    )

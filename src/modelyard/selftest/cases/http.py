"""HTTP/1.1 as RFC 9112 (messages) and RFC 9110 (semantics) have it, as bytes: what a server must take, and what it must
refuse although it could guess what was meant.

Each case is one connection. `statuses` are those of the answers in their order; a refused request ends its connection,
so whatever is smuggled behind it is never read."""

from __future__ import annotations

from dataclasses import dataclass

AUTHORIZATION = b"authorization: Bearer {key}\r\n"


@dataclass(frozen=True, slots=True)
class HttpCase:
    """`request` holds `{key}` where a client's key belongs; `closes` whether the server must end the connection."""

    name: str
    request: bytes
    statuses: tuple[int, ...]
    closes: bool = False

    def bytes_with(self, key: str) -> bytes:
        return self.request.replace(b"{key}", key.encode())


def _get(lines: bytes = b"host: gateway\r\n", target: bytes = b"/health", version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET %b %b\r\n%b\r\n" % (target, version, lines)


def _post(framing: bytes, body: bytes) -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n" + AUTHORIZATION
    return head + framing + b"\r\n" + body


# A body that is refused as JSON: 400 shows that it was read to its end, and that the connection goes on.
_BODY = b"{no json"
_PLAIN = b"content-length: 8\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n"
_CHUNKS = b"3\r\n{no\r\n5\r\n json\r\n0\r\n\r\n"


def _taken(name: str, request: bytes, *statuses: int, closes: bool = False) -> HttpCase:
    return HttpCase(name, request, statuses, closes)


def _refused(name: str, request: bytes, status: int = 400) -> HttpCase:
    """A health request stands behind it: were it answered, the refused one was read as something else."""
    return HttpCase(name, request + _get(), (status,), closes=True)


TAKEN = (
    _taken("a plain request", _get(), 200),
    _taken("two requests on one connection", _get() + _get(), 200, 200),
    _taken("two empty lines before the request line", b"\r\n\r\n" + _get(), 200),
    _taken("an empty line between two requests", _get() + b"\r\n" + _get(), 200, 200),
    _taken("field names in capitals", _get(b"HOST: gateway\r\nACCEPT: */*\r\n"), 200),
    _taken("no space after the colon", _get(b"host:gateway\r\n"), 200),
    _taken("spaces and tabs around a value", _get(b"host: \t gateway \t \r\n"), 200),
    _taken("an empty field value", _get(b"host: gateway\r\naccept:\r\n"), 200),
    _taken("bytes above 127 in a value", _get(b"host: gateway\r\nx-note: caf\xc3\xa9\r\n"), 200),
    _taken("every character that a name may have", _get(b"host: gateway\r\n!#$%&'*+-.^`|~09aZ: x\r\n"), 200),
    _taken("a Host with a port", _get(b"host: gateway:8000\r\n"), 200),
    _taken("a Host that is an IPv6 address", _get(b"host: [::1]:8000\r\n"), 200),
    _taken("a query", _get(target=b"/health?a=b/../c"), 200),
    _taken("the absolute form", _get(target=b"http://gateway/health"), 200),
    _taken("the absolute form in capitals", _get(b"host: Gateway:80\r\n", b"HTTP://gateway:80/health"), 200),
    _taken("another scheme is another target", _get(target=b"ftp://gateway/health") + _get(), 404, 200),
    _taken("a fragment is part of the target", _get(target=b"/health#x") + _get(), 404, 200),
    _taken("two spaces before the target", b"GET  /health HTTP/1.1\r\nhost: gateway\r\n\r\n", 200),
    _taken("connection: close", _get(b"host: gateway\r\nconnection: close\r\n"), 200, closes=True),
    _taken("HTTP/1.0 without a Host", _get(b"", version=b"HTTP/1.0"), 200, closes=True),
    _taken("a method that the route does not have", b"DELETE /health HTTP/1.1\r\nhost: gateway\r\n\r\n", 405),
    _taken("a body by length", _post(_PLAIN, _BODY), 400),
    _taken("a body by length, and another request", _post(_PLAIN, _BODY) + _get(), 400, 200),
    _taken("a body in chunks", _post(_CHUNKED, _CHUNKS) + _get(), 400, 200),
    _taken("chunked in capitals", _post(b"Transfer-Encoding: CHUNKED\r\n", _CHUNKS) + _get(), 400, 200),
    _taken("a chunk extension", _post(_CHUNKED, b'8;a=b;c="d"\r\n{no json\r\n0\r\n\r\n') + _get(), 400, 200),
    _taken("chunk sizes with leading zeros", _post(_CHUNKED, b"0008\r\n{no json\r\n000\r\n\r\n") + _get(), 400, 200),
    _taken("trailers", _post(_CHUNKED, b"8\r\n{no json\r\n0\r\nx-sum: 1\r\n\r\n") + _get(), 400, 200),
    _taken("trailers that change nothing", _post(_CHUNKED, b"8\r\n{no json\r\n0\r\nhost: a\r\n"
           b"authorization: Bearer x\r\n\r\n") + _get(), 400, 200),
    _taken("no body at all", _post(b"content-length: 0\r\n", b"") + _get(), 400, 200),
)  # fmt: skip
REFUSED = (
    _refused("no Host", _get(b"")),
    _refused("two Hosts", _get(b"host: gateway\r\nhost: gateway\r\n")),
    _refused("an empty Host", _get(b"host:\r\n")),
    _refused("a Host with a path", _get(b"host: gateway/health\r\n")),
    _refused("a Host with user and password", _get(b"host: a:b@gateway\r\n")),
    _refused("a Host with a space", _get(b"host: gate way\r\n")),
    _refused("a Host with a bad port", _get(b"host: gateway:80a\r\n")),
    _refused("a target that names another host", _get(target=b"http://other/health")),
    _refused("a target with user and password", _get(target=b"http://a@gateway/health")),
    _refused("HTTP/2.0", _get(version=b"HTTP/2.0"), 505),
    _refused("HTTP/9.9", _get(version=b"HTTP/9.9")),
    _refused("HTTP/1.2", _get(version=b"HTTP/1.2")),
    _refused("HTTP/0.9", b"GET /health\r\n\r\n", 505),
    _refused("a version in small letters", _get(version=b"http/1.1")),
    _refused("a version with a space", _get(version=b"HTTP/ 1.1")),
    _refused("a tab in the request line", b"GET\t/health HTTP/1.1\r\nhost: gateway\r\n\r\n"),
    _refused("a space before the request line", b" GET /health HTTP/1.1\r\nhost: gateway\r\n\r\n"),
    _refused("a space after the version", _get(version=b"HTTP/1.1 ")),
    _refused("a space in the target", _get(target=b"/health x")),
    _refused("a control character in the target", _get(target=b"/health\x01")),
    _refused("a bare LF at the end of the request line", b"GET /health HTTP/1.1\nhost: gateway\r\n\r\n"),
    _refused("a bare LF at the end of a field", _get(b"host: gateway\naccept: */*\r\n")),
    _refused("a bare LF at the end of the head", b"GET /health HTTP/1.1\r\nhost: gateway\r\n\n"),
    _refused("a bare CR in a value", _get(b"host: gateway\r\nx: a\rb\r\n")),
    _refused("NUL in a value", _get(b"host: gateway\r\nx: a\x00b\r\n")),
    _refused("a control character in a value", _get(b"host: gateway\r\nx: a\x01b\r\n")),
    _refused("DEL in a value", _get(b"host: gateway\r\nx: a\x7fb\r\n")),
    _refused("a control character in a name", _get(b"host: gateway\r\nx\x01y: a\r\n")),
    _refused("a space before the colon", _get(b"host : gateway\r\n")),
    _refused("a space before the first field", _get(b" host: gateway\r\n")),
    _refused("a folded value", _get(b"host: gateway\r\nx: a\r\n b\r\n")),
    _refused("a value folded with a tab", _get(b"host: gateway\r\nx: a\r\n\tb\r\n")),
    _refused("no colon", _get(b"host: gateway\r\nnothing\r\n")),
    _refused("an empty name", _get(b"host: gateway\r\n: x\r\n")),
    _refused("an underscore in a name", _get(b"host: gateway\r\ncontent_length: 9\r\n")),
    _refused("quotes in a name", _get(b'host: gateway\r\n"x": 1\r\n')),
    _refused("a method that is none", b"GE(T /health HTTP/1.1\r\nhost: gateway\r\n\r\n"),
    _refused("CONNECT", b"CONNECT gateway:80 HTTP/1.1\r\nhost: gateway:80\r\n\r\n"),
    _refused("an upgrade", _get(b"host: gateway\r\nconnection: upgrade\r\nupgrade: h2c\r\n")),
    _refused("a length and chunks", _post(_PLAIN + _CHUNKED, _CHUNKS)),
    _refused("chunks and a length", _post(_CHUNKED + _PLAIN, _CHUNKS)),
    _refused("two lengths", _post(_PLAIN + b"content-length: 9\r\n", _BODY)),
    _refused("the same length twice", _post(_PLAIN + _PLAIN, _BODY)),
    _refused("a list of lengths", _post(b"content-length: 8, 8\r\n", _BODY)),
    _refused("a negative length", _post(b"content-length: -8\r\n", _BODY)),
    _refused("a length with a sign", _post(b"content-length: +8\r\n", _BODY)),
    _refused("a hexadecimal length", _post(b"content-length: 0x8\r\n", _BODY)),
    _refused("a length with a space inside", _post(b"content-length: 1 8\r\n", _BODY)),
    _refused("an empty length", _post(b"content-length:\r\n", _BODY)),
    _refused("a length of 30 digits", _post(b"content-length: %b\r\n" % (b"9" * 30), _BODY)),
    _refused("another coding than chunked", _post(b"transfer-encoding: gzip\r\n", _CHUNKS)),
    _refused("chunked, but not last", _post(b"transfer-encoding: chunked, gzip\r\n", _CHUNKS)),
    _refused("chunked last, but not alone", _post(b"transfer-encoding: gzip, chunked\r\n", _CHUNKS)),
    _refused("chunked twice", _post(b"transfer-encoding: chunked, chunked\r\n", _CHUNKS)),
    _refused("two fields of transfer-encoding", _post(_CHUNKED + _CHUNKED, _CHUNKS)),
    _refused("chunked with a form feed", _post(b"transfer-encoding: \x0cchunked\r\n", _CHUNKS)),
    _refused("chunked that is not", _post(b"transfer-encoding: xchunked\r\n", _CHUNKS)),
    _refused("an empty transfer-encoding", _post(b"transfer-encoding:\r\n", _CHUNKS)),
    _refused("chunks in HTTP/1.0", _post(_CHUNKED, _CHUNKS).replace(b"HTTP/1.1", b"HTTP/1.0")),
    _refused("a chunk size that is no number", _post(_CHUNKED, b"zz\r\n{no json\r\n0\r\n\r\n")),
    _refused("a chunk size with 0x", _post(_CHUNKED, b"0x8\r\n{no json\r\n0\r\n\r\n")),
    _refused("a negative chunk size", _post(_CHUNKED, b"-8\r\n{no json\r\n0\r\n\r\n")),
    _refused("a chunk size of 20 digits", _post(_CHUNKED, b"f" * 20 + b"\r\n{no json\r\n0\r\n\r\n")),
    _refused("a chunk longer than its size", _post(_CHUNKED, b"7\r\n{no json\r\n0\r\n\r\n")),
    _refused("a chunk size ended by a bare LF", _post(_CHUNKED, b"8\n{no json\r\n0\r\n\r\n")),
    _refused("a chunk ended by a bare LF", _post(_CHUNKED, b"8\r\n{no json\n0\r\n\r\n")),
    _refused("a space before a chunk size", _post(_CHUNKED, b" 8\r\n{no json\r\n0\r\n\r\n")),
    _refused("a space after a chunk size", _post(_CHUNKED, b"8 \r\n{no json\r\n0\r\n\r\n")),
    _refused("a bare LF in a chunk extension", _post(_CHUNKED, b"8;a\nb\r\n{no json\r\n0\r\n\r\n")),
    _refused("a length among the trailers", _post(_CHUNKED, b"8\r\n{no json\r\n0\r\ncontent-length: 9\r\n\r\n")),
    _refused("a content-encoding", _post(_PLAIN + b"content-encoding: gzip\r\n", _BODY), 415),
)
CASES = TAKEN + REFUSED

"""Answers as the faults make them: bytes of a response, built wrong on purpose. Standard library only."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator

from modelyard.testing.fault_plan import Fault
from modelyard.testing.fault_upstream import Answer

HTML = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>\n"
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"[DONE]"
NO_UTF8 = b"\xff"


def without_engine(fault: Fault, *, stream: bool) -> bytes | None:
    """The whole response of a fault that needs no engine; None for the others."""
    match fault.kind:
        case "empty-200":
            kind = b"text/event-stream; charset=utf-8" if stream else b"application/json"
            return _whole(b"200 OK", kind, b"")
        case "html-502":
            return _whole(b"502 Bad Gateway", b"text/html", HTML)
        case "redirect":
            return _whole(b"307 Temporary Redirect", b"text/plain", b"", b"location: " + fault.location.encode())
        case _:
            return None


async def response(answer: Answer, fault: Fault) -> AsyncIterator[bytes]:
    """What is written for an engine's answer, piece by piece. Each piece is one write."""
    match fault.kind:
        case "informational":
            for _ in range(fault.number):
                yield EARLY_HINTS
        case "wrong-length" | "short-length":
            body = b"".join([piece async for piece in answer.pieces])
            said = len(body) + fault.size if fault.kind == "wrong-length" else max(len(body) - fault.size, 0)
            yield answer.head(f"content-length: {said}")
            yield body
            return
        case "bad-chunk":
            async for data in _with_bad_chunk(answer, fault.number):
                yield data
            return
        case _:
            pass
    if answer.is_chunked:
        yield answer.head("transfer-encoding: chunked")
        async for piece in _changed(answer, fault):
            yield chunk(piece)
        yield LAST_CHUNK
    else:
        # A plain body is changed as a whole: its length stands in its head.
        pieces = [piece async for piece in _changed(answer, fault)]
        yield answer.head(f"content-length: {sum(map(len, pieces))}")
        for piece in pieces:
            yield piece
    if fault.kind == "extra-bytes":
        yield b"x" * fault.size


async def _with_bad_chunk(answer: Answer, after: int) -> AsyncIterator[bytes]:
    yield answer.head("transfer-encoding: chunked")
    sent = 0
    async for piece in answer.pieces:
        if sent == after:
            break
        sent += 1
        yield chunk(piece)
    yield b"zz\r\nno size\r\n"


async def _changed(answer: Answer, fault: Fault) -> AsyncGenerator[bytes]:
    """The body's pieces, changed within sound framing."""
    if not answer.is_stream:
        body = b"".join([piece async for piece in answer.pieces])
        for piece in _changed_body(body, fault):
            yield piece
        return
    number = 0
    async for piece in answer.pieces:
        for changed in _changed_event(piece, number, fault):
            yield changed
        number += 1


def _changed_body(body: bytes, fault: Fault) -> Iterator[bytes]:
    match fault.kind:
        case "bad-json":
            yield body[: len(body) // 2]
        case "bad-utf8":
            yield body[:-2] + b',"x":"' + NO_UTF8 + b'"}'
        case "long-line":
            yield body[:-1] + b',"x":"' + b"x" * fault.size + b'"}'
        case "split-utf8":
            yield from torn(body)
        case _:
            yield body


def _changed_event(piece: bytes, number: int, fault: Fault) -> Iterator[bytes]:
    match fault.kind:
        case "bad-json" if number == fault.number:
            yield piece[: len(piece) // 2] + b"\n\n"
        case "bad-utf8" if number == fault.number:
            yield piece.replace(b'"content":"', b'"content":"' + NO_UTF8)
        case "long-line" if number == fault.number:
            yield b'data: {"x":"' + b"x" * fault.size + b'"}\n\n'
            yield piece
        case "no-done" if DONE in piece:
            return
        case "split-utf8":
            yield from torn(piece)
        case _:
            yield piece


def torn(data: bytes) -> Iterator[bytes]:
    """`data` cut inside each character of several bytes."""
    begin = 0
    for at, byte in enumerate(data):
        if byte & 0xC0 == 0x80 and at and data[at - 1] & 0xC0 == 0xC0:
            yield data[begin:at]
            begin = at
    yield data[begin:]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _whole(status: bytes, content_type: bytes, body: bytes, *lines: bytes) -> bytes:
    head = [b"HTTP/1.1 " + status, b"content-type: " + content_type, b"content-length: %d" % len(body), *lines]
    return b"\r\n".join([*head, b"", b""]) + body

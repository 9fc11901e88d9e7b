"""Requests that are small to send and large to hold, or that never end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

MIB = 1 << 20
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
_SOUND = b'{"model":"m","messages":[{"role":"user","content":"hello"}],'


@dataclass(frozen=True, slots=True)
class Bomb:
    """`pieces` are what is sent one after the other, for as long as the server takes it; the first holds `{key}`.
    `announced_bytes` is how much the client would send. Any status of `statuses` is a refusal in time."""

    name: str
    pieces: Callable[[], Iterator[bytes]]
    announced_bytes: int
    statuses: tuple[int, ...] = (400,)


def _whole(name: str, body: bytes, *statuses: int) -> Bomb:
    def pieces() -> Iterator[bytes]:
        yield _HEAD + b"content-length: %d\r\n\r\n" % len(body)
        yield from _cut(body)

    return Bomb(name, pieces, len(body), statuses or (400,))


def _cut(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 65_536):
        yield data[start : start + 65_536]


def _endless(name: str, head: bytes, piece: bytes, most_bytes: int, *statuses: int) -> Bomb:
    def pieces() -> Iterator[bytes]:
        yield head
        for _ in range(most_bytes // len(piece)):
            yield piece

    return Bomb(name, pieces, most_bytes, statuses)


def _field(values: bytes, count: int, size_bytes: int = 7 * MIB) -> bytes:
    """A sound request with a list of as many equal values as fit."""
    inner = values * min(count, (size_bytes - len(_SOUND) - 100) // len(values))
    return _SOUND + b'"x":[' + inner[:-1] + b"]}"


def _keys(count: int) -> bytes:
    return _SOUND + b'"x":{' + b",".join(b'"%d":0' % number for number in range(count)) + b"}}"


def _bombs() -> Iterator[Bomb]:
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    chunked = _HEAD + b"transfer-encoding: chunked\r\n\r\n"
    yield _whole("lists of 100,000 levels", b"[" * 100_000 + b"]" * 100_000)
    yield _whole("objects of 100,000 levels in a field", _SOUND + b'"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001)
    yield _whole("levels in tools", _SOUND + b'"tools":[{"a":' + b"[" * 900 + b"]" * 900 + b"}]}")
    yield Bomb(
        "a body of 200 MiB", lambda: iter([_HEAD + b"content-length: %d\r\n\r\n" % (200 * MIB)]), 200 * MIB, (413,)
    )
    yield _endless("chunks without an end", chunked, chunk, 200 * MIB, 413)
    yield _endless("chunks of one byte without an end", chunked, b"1\r\n \r\n" * 10_000, 200 * MIB, 400, 413, 431)
    # Less than what is thrown away behind a refusal (`body_bytes`): beyond it the connection is cut, answer and all.
    yield _endless("a chunk extension without an end", chunked + b"1;", b"a" * 65_536, 4 * MIB, 400, 431)
    yield _endless("trailers without an end", chunked + b"0\r\n", b"x: y\r\n" * 1_000, 4 * MIB, 400, 431)
    yield _whole("a million keys", _keys(600_000))
    yield _whole("lists", _field(b"[],", 3 * MIB))
    yield _whole("objects", _field(b"{},", 3 * MIB))
    yield _whole("short texts", _field(b'"ab",', 2 * MIB))
    yield _whole("numbers", _field(b"0.5,", 2 * MIB))
    yield _whole("lists that are not too many", _field(b"[],", MIB, 280_000), 200)
    yield _whole("a number of 5,000 digits", _SOUND + b'"max_tokens":' + b"9" * 5_000 + b"}")
    yield _whole("a million equal keys", _SOUND + b'"x":{' + b'"a":0,' * 600_000 + b'"b":0}}')
    yield _whole("parts of a message", _SOUND[:41] + b"[" + b'{"type":"text","text":""},' * 200_000 + b"{}]}]}")
    yield _endless("a head of 1 MiB", b"GET /health HTTP/1.1\r\nhost: gateway\r\nx: ", b"y" * 16_384, MIB, 400, 431)
    yield _endless("10,000 fields", b"GET /health HTTP/1.1\r\nhost: gateway\r\n", b"x: y\r\n" * 100, 60_000, 400, 431)
    yield _endless("a target of 1 MiB", b"GET /", b"y" * 16_384, MIB, 400, 431)
    yield Bomb(
        "gzip",
        lambda: iter([_HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % MIB]),
        MIB,
        (415,),
    )
    yield _whole("a form of 100,000 parts", b"--x\r\ncontent-disposition: form-data\r\n\r\n\r\n" * 100_000)


BOMBS: tuple[Bomb, ...] = tuple(_bombs())

"""Where a body ends, said in every way that two readers have ever understood differently: length, chunks and Host, each
right, absent, or wrong in one of many ways, all combined. Behind every request stands another one: where the framing is
in any doubt, neither may reach an engine; where it is not, both do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

FRONT, BEHIND = "the-first-text", "the-second-text"
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\n%bauthorization: Bearer {key}\r\n%b\r\n"

HOSTS: dict[str, tuple[bytes, bool]] = {
    "Host": (b"host: gateway\r\n", True),
    "a Host in capitals": (b"HOST: GATEWAY:8000\r\n", True),
    "no Host": (b"", False),
    "two Hosts": (b"host: gateway\r\nHost: other\r\n", False),
    "a Host with a path": (b"host: gateway/v1/models?\r\n", False),
}
# name -> field lines with %d for the right length; whether that alone frames the body.
LENGTHS: dict[str, tuple[bytes, bool]] = {
    "no length": (b"", False),
    "the length": (b"content-length: %d\r\n", True),
    "the length after a tab": (b"content-length:\t%d\r\n", True),
    "the length with leading zeros": (b"content-length: 000%d\r\n", True),
    "the length twice": (b"content-length: %d\r\ncontent-length: %d\r\n", False),
    "two lengths": (b"content-length: %d\r\ncontent-length: 0\r\n", False),
    "a list of lengths": (b"content-length: %d, %d\r\n", False),
    "the length with a sign": (b"content-length: +%d\r\n", False),
    "a negative length": (b"content-length: -%d\r\n", False),
    "the length in hexadecimal": (b"content-length: 0x%x\r\n", False),
    "the length with a fraction": (b"content-length: %d.0\r\n", False),
    "the length with a vertical tab": (b"content-length: \x0b%d\r\n", False),
    "the length with NUL": (b"content-length: %d\x00\r\n", False),
    "a space before the colon of the length": (b"content-length : %d\r\n", False),
    "an underscore in the length's name": (b"content_length: %d\r\n", False),
    "the length in a folded line": (b"content-length:\r\n %d\r\n", False),
    "the length behind a bare CR": (b"x: y\rcontent-length: %d\r\n", False),
}
CODINGS: dict[str, tuple[bytes, bool]] = {
    "no coding": (b"", False),
    "chunked": (b"transfer-encoding: chunked\r\n", True),
    "chunked in capitals": (b"Transfer-Encoding: CHUNKED\r\n", True),
    "chunked twice": (b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", False),
    "chunked, chunked": (b"transfer-encoding: chunked, chunked\r\n", False),
    "chunked, identity": (b"transfer-encoding: chunked, identity\r\n", False),
    "identity": (b"transfer-encoding: identity\r\n", False),
    "identity, chunked": (b"transfer-encoding: identity, chunked\r\n", False),
    "gzip, chunked": (b"transfer-encoding: gzip, chunked\r\n", False),
    "xchunked": (b"transfer-encoding: xchunked\r\n", False),
    "chunkedx": (b"transfer-encoding: chunkedx\r\n", False),
    "chunked in quotes": (b'transfer-encoding: "chunked"\r\n', False),
    "chunked with a parameter": (b"transfer-encoding: chunked;q=1\r\n", False),
    "chunked after a vertical tab": (b"transfer-encoding: \x0bchunked\r\n", False),
    "chunked after a comma": (b"transfer-encoding: ,chunked\r\n", False),
    "chunked with NUL": (b"transfer-encoding: chunked\x00\r\n", False),
    "a space before the colon of the coding": (b"transfer-encoding : chunked\r\n", False),
    "an underscore in the coding's name": (b"transfer_encoding: chunked\r\n", False),
    "the coding in a folded line": (b"transfer-encoding:\r\n chunked\r\n", False),
    "the coding behind a bare LF": (b"x: y\ntransfer-encoding: chunked\r\n", False),
    "the coding behind a space": (b" transfer-encoding: chunked\r\n", False),
}


@dataclass(frozen=True, slots=True)
class FramingCase:
    """`request` holds `{key}` where a client's key belongs. `clear`: both requests are to be answered, else none."""

    name: str
    request: bytes
    clear: bool

    def bytes_with(self, key: str) -> bytes:
        return self.request.replace(b"{key}", key.encode())


def framing_cases() -> Iterator[FramingCase]:
    """Every combination: 1,785."""
    body = _chat(FRONT)
    behind = _HEAD % (b"host: gateway\r\n", b"content-length: %d\r\n" % len(_chat(BEHIND))) + _chat(BEHIND)
    for host, (host_lines, host_is_good) in HOSTS.items():
        for length, (length_lines, by_length) in LENGTHS.items():
            for coding, (coding_lines, by_chunks) in CODINGS.items():
                data = body if coding == "no coding" else _in_chunks(body)
                numbers = length_lines.count(b"%d") + length_lines.count(b"%x")
                lines = coding_lines + length_lines % ((len(data),) * numbers)
                clear = host_is_good and (
                    (by_length and coding == "no coding") or (by_chunks and length == "no length")
                )
                yield FramingCase(f"{host}, {length}, {coding}", _HEAD % (host_lines, lines) + data + behind, clear)


def _chat(content: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}).encode()


def _in_chunks(body: bytes) -> bytes:
    pieces = (body[:10], body[10:])
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"

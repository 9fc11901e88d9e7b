"""Four ways in which clients read server-sent events. Each gives the data of every event."""

from __future__ import annotations

from collections.abc import Callable


def by_blank_lines(body: bytes) -> list[str]:
    """As small scripts do it: split at blank lines, take what stands behind `data:`."""
    found: list[str] = []
    for event in body.split(b"\n\n"):
        lines = [line.removeprefix(b"data:") for line in event.split(b"\n") if line.startswith(b"data:")]
        found += [b"\n".join(line.removeprefix(b" ") for line in lines).decode()] if lines else []
    return found


def by_the_standard(body: bytes) -> list[str]:
    """As browsers do it (WHATWG HTML, 9.2.6): a line ends with CRLF, CR or LF; an empty one dispatches."""
    found: list[str] = []
    data: list[str] = []
    for line in body.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line:
            found += ["\n".join(data)] if data else []
            data = []
        elif line.startswith("data"):
            name, _, value = line.partition(":")
            data += [value.removeprefix(" ")] if name == "data" else []
    return found


def by_lines_of_bytes(body: bytes) -> list[str]:
    """As the official clients in Python do it: collect lines until two line ends follow each other, then split those
    again, as bytes."""
    found: list[str] = []
    block = b""
    for piece in body.splitlines(keepends=True):
        block += piece
        if block.endswith((b"\r\r", b"\n\n", b"\r\n\r\n")):
            lines = [line.decode() for line in block.splitlines()]
            data = [line[5:].removeprefix(" ") for line in lines if line.startswith("data:")]
            found += ["\n".join(data)] if data else []
            block = b""
    return found


def by_lines_of_text(body: bytes) -> list[str]:
    """As scripts do it that go through the `iter_lines` of an HTTP library: Python cuts text at more than CR and LF."""
    lines = [line for line in body.decode().splitlines() if line.startswith("data:")]
    return [line.removeprefix("data:").removeprefix(" ") for line in lines]


READERS: dict[str, Callable[[bytes], list[str]]] = {
    "split at blank lines": by_blank_lines,
    "the standard": by_the_standard,
    "lines of bytes": by_lines_of_bytes,
    "lines of text": by_lines_of_text,
}

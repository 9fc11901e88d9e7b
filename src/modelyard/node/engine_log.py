"""What an engine prints: cut into lines, made harmless, stamped, written to a file that rotates, its tail kept."""

from __future__ import annotations

import os
import re
import time
from collections import deque

TAIL_LINES = 50
MAX_LINE_CHARS = 4096
_MAX_PARTIAL_BYTES = MAX_LINE_CHARS
# Progress bars rewrite their line with a bare carriage return; to a log each state is a line.
_LINE_ENDS = re.compile(rb"[\r\n]+")


def escape(line: bytes) -> str:
    """Text without control characters, line separators or direction marks: it can forge no line and move no cursor."""
    text = line.decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\t" else _escaped(c) for c in text)
    return text if len(text) <= MAX_LINE_CHARS else text[: MAX_LINE_CHARS - 1] + "…"


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Lines:
    """Cuts a stream of bytes into escaped lines; blank ones are left out, endless ones are cut."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> list[str]:
        pieces = _LINE_ENDS.split(self._partial + data)
        self._partial = pieces.pop()
        while len(self._partial) > _MAX_PARTIAL_BYTES:
            pieces.append(self._partial[:_MAX_PARTIAL_BYTES])
            self._partial = self._partial[_MAX_PARTIAL_BYTES:]
        return [escape(piece) for piece in pieces if piece]

    def finish(self) -> list[str]:
        """The last line, where it has no end."""
        rest, self._partial = self._partial, b""
        return [escape(rest)] if rest else []


class EngineLog:
    """The file and the tail. Not being able to write costs log lines, never the engine."""

    def __init__(self, path: str, max_bytes: int, keep: int) -> None:
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        self._descriptor = -1
        self._size = 0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def write(self, lines: list[str]) -> None:
        """Append `lines`, each with the time (UTC)."""
        self.tail.extend(lines)
        stamp = _stamp()
        data = "".join(f"{stamp} {line}\n" for line in lines).encode()
        try:
            if self._descriptor < 0:
                self._open()
            elif self._size + len(data) > self._max_bytes:
                self._rotate()
            self._size += os.write(self._descriptor, data)
        except OSError:
            self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        self.close()
        names = [self._path, *(f"{self._path}.{number}" for number in range(1, self._keep + 1))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if os.path.exists(newer):
                os.replace(newer, older)
        if self._keep == 0:
            os.unlink(self._path)
        self._open()


def _stamp() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"

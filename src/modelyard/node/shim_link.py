"""The shim's side of its connection to control: dials, dials again, sends what matters and drops what does not."""

from __future__ import annotations

import os
import random
import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from modelyard.node.shim_wire import (
    MAX_FRAME_BYTES,
    Exited,
    FromShim,
    Hello,
    LogLine,
    ToShim,
    frame,
    peer_uid,
    read_to_shim,
)
from modelyard.records.base import UnreadableRecord

MAX_QUEUED_LINES = 256
# A flood of output costs control at most MAX_QUEUED_LINES lines in this time.
LINES_EVERY_S = 0.05
_REDIAL_S = (0.05, 0.25)
_MAX_UNSENT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Greeting:
    """What every new peer is told, in this order."""

    hello: Hello
    tail: Iterable[str]
    exited: Exited | None


class ShimLink:
    """One connection at a time, never blocking. `greeting` gives what a new peer is told first; `on_command` gets what
    it says. Log lines wait in a bounded queue that drops the oldest; other records are never dropped while the
    connection lives, and the greeting repeats what a lost connection took with it."""

    def __init__(
        self,
        path: str,
        selector: selectors.BaseSelector,
        greeting: Callable[[], Greeting],
        on_command: Callable[[ToShim], None],
    ) -> None:
        self._path, self._selector = path, selector
        self._greeting, self._on_command = greeting, on_command
        self._socket: socket.socket | None = None
        self._received = bytearray()
        self._unsent = bytearray()
        self._lines: deque[str] = deque(maxlen=MAX_QUEUED_LINES)
        self._dropped = 0
        self._due_at = 0.0

    @property
    def due_at(self) -> float | None:
        """When `tick` has something to do (monotonic seconds); None where nothing waits for a time."""
        if self._socket is None or self._wants_to_send_lines:
            return self._due_at
        return None

    def tick(self, now: float) -> None:
        """Dial, or move waiting lines towards the peer, if it is time."""
        if now < self._due_at:
            return
        if self._socket is None:
            self._dial(now)
        elif self._wants_to_send_lines:
            self._due_at = now + LINES_EVERY_S
            self._send_lines()

    def say(self, record: FromShim) -> None:
        """Send `record` after the lines before it; nothing where there is no peer: the next greeting tells."""
        if self._socket is not None:
            self._send_lines()
            self._unsent += frame(record)
            self._flush()

    def say_lines(self, lines: list[str]) -> None:
        self._dropped += max(0, len(self._lines) + len(lines) - MAX_QUEUED_LINES)
        self._lines.extend(lines)

    @property
    def _wants_to_send_lines(self) -> bool:
        return bool(self._lines) and len(self._unsent) < _MAX_UNSENT_BYTES

    def _send_lines(self) -> None:
        for line in self._lines:
            self._unsent += frame(LogLine(text=line, dropped=self._dropped))
            self._dropped = 0
        self._lines.clear()
        self._flush()

    def _dial(self, now: float) -> None:
        self._due_at = now + random.uniform(*_REDIAL_S)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connection.connect(self._path)
            if peer_uid(connection) != os.getuid():
                raise PermissionError("the rendezvous belongs to another user")
        except OSError:
            connection.close()
            return
        self._socket = connection
        self._received.clear()
        self._unsent.clear()
        self._selector.register(connection, selectors.EVENT_READ, self._on_ready)
        self._greet(self._greeting())

    def _greet(self, greeting: Greeting) -> None:
        self._unsent += frame(greeting.hello)
        self._lines.clear()
        self._lines.extend(greeting.tail)
        self._dropped = 0
        if greeting.exited is not None:
            self.say(greeting.exited)
        else:
            self._flush()

    def _on_ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if mask & selectors.EVENT_READ and self._socket is not None:
            self._receive()

    def _flush(self) -> None:
        if self._socket is None:
            return
        try:
            sent = self._socket.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._hang_up()
            return
        del self._unsent[:sent]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._socket, wanted, self._on_ready)

    def _receive(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        if not data or len(self._received) > MAX_FRAME_BYTES:
            self._hang_up()
            return
        *lines, rest = self._received.split(b"\n")
        self._received = rest
        for line in lines:
            try:
                command = read_to_shim(bytes(line))
            except UnreadableRecord:
                # Another version of control, or not control at all: what it wants is not to be guessed.
                self._hang_up()
                return
            self._on_command(command)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        self._hang_up()

"""What the workers of one gateway say to each other: msgpack in frames, over a unix socket of our own.

Times are monotonic seconds: one clock for all processes of a machine."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TypeVar, cast

import msgspec

from modelyard.gateway.asking import Asking, Result, Wanted
from modelyard.gateway.breaker import Event
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.shared_accounts import Ended
from modelyard.records.decision import Admitted, Decision

# Raised with any change of a message: a worker of another version is not spoken to.
PROTOCOL = 2
# How often the owner gives a sign of life.
BEAT_S = 0.25
# Far beyond any message: a longer one is no message.
MAX_FRAME_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")


class _Message(msgspec.Struct, array_like=True, tag=True):
    """Positions, not names: half the bytes, and nobody but us reads them."""


# A worker to the owner.


class Hello(_Message):
    """The first word: `journal` is the name of the worker's file. What it holds follows; `Declared` ends that."""

    protocol: int
    journal: str


class Holding(_Message):
    """`seats` requests of mine, of this key, are at this launch."""

    deployment: str
    replica: str
    launch: str
    key_id: str
    seats: int


class Held(_Message):
    """A former owner has reserved this for a request of mine that has not ended."""

    wanted: Wanted


class HasEnded(_Message):
    """A request of mine for which a former owner had reserved, and what it has used."""

    ended: Ended


class Declared(_Message):
    """That was all that I hold."""


class Ask(_Message):
    """A seat is wanted, since `at`. `id` is the worker's own."""

    id: int
    deployment: str
    asking: Asking
    at: float


class Forget(_Message):
    """Nobody waits for the answer to this ask any more."""

    id: int


class Learned(_Message):
    """How the launch fared, for its breaker; `refusing` where it took no connection."""

    deployment: str
    replica: str
    launch: str
    event: Event
    refusing: bool


class Leave(_Message):
    """A seat is given back."""

    deployment: str
    replica: str
    launch: str
    result: Result
    asking: Asking


class Settle(_Message):
    """What a request has used for which something may be reserved; the rest goes back."""

    request_id: str
    tokens: int
    cost_pico: int


# The owner to a worker.


class Members(_Message):
    """How many workers are linked to the owner now. Said with every change, and every BEAT_S as a sign of life."""

    count: int


class Granted(_Message):
    """`lines` are header lines about what is left of the key's limits."""

    id: int
    deployment: str
    replica: str
    launch: str
    key_id: str
    decision: Decision
    lines: bytes = b""


class NotSeated(_Message):
    """Why, as a client is told: a Refusal's parts. `admitted` is the door's decision where that refused."""

    id: int
    status: int
    message: str
    code: str
    retry_after_s: int | None
    fields: tuple[tuple[str, str], ...] = ()
    admitted: Admitted | None = None

    @classmethod
    def of(cls, id: int, refusal: Refusal) -> NotSeated:
        told = (refusal.status, refusal.message, refusal.code, refusal.retry_after_s, refusal.fields)
        return cls(id, *told, refusal.admitted)

    def refusal(self) -> Refusal:
        refusal = Refusal(
            self.status, self.message, code=self.code, retry_after_s=self.retry_after_s, fields=self.fields
        )
        refusal.admitted = self.admitted
        return refusal


ToOwner = Hello | Holding | Held | HasEnded | Declared | Settle | Ask | Forget | Learned | Leave
ToWorker = Members | Granted | NotSeated
M = TypeVar("M")


class Frames(asyncio.Protocol):
    """One end of a link. What is sent in one turn of the event loop leaves in one write. Subclasses hear messages."""

    def __init__(self, kind: object) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)  # type: ignore[arg-type]
        self._encoder = msgspec.msgpack.Encoder()
        self._transport: asyncio.Transport | None = None
        self._unread = bytearray()
        self._unsent = bytearray()

    def heard(self, message: object) -> None:
        raise NotImplementedError

    def ended(self) -> None:
        raise NotImplementedError

    def send(self, message: _Message) -> None:
        if self._transport is None:
            return
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        body = self._encoder.encode(message)
        self._unsent += _LENGTH.pack(len(body))
        self._unsent += body

    def close(self) -> None:
        """What was sent before still leaves."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        if self._transport is not None and self._unsent:
            self._transport.write(bytes(self._unsent))
            self._unsent.clear()

    # The event loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not is_our_own(transport.get_extra_info("socket")):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.ended()

    def data_received(self, data: bytes) -> None:
        unread = self._unread
        unread += data
        begin = 0
        while len(unread) - begin >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(unread, begin)
            end = begin + _LENGTH.size + size
            if size > MAX_FRAME_BYTES:
                self.abort()
                return
            if end > len(unread):
                break
            try:
                message = self._decoder.decode(bytes(unread[begin + _LENGTH.size : end]))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                # Another version, or a stranger.
                self.abort()
                return
            begin = end
            self.heard(message)
        del unread[:begin]


def is_our_own(sock: socket.socket) -> bool:
    """Whether a process of our own user is at the other end of a unix socket, by the kernel's word (Linux; elsewhere
    the folder's mode is what keeps others out)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return uid == os.getuid()

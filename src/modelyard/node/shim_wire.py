"""What a shim and control say to each other: one JSON record per line over a unix socket of the same user."""

from __future__ import annotations

import socket
import struct
from typing import TypeVar

import msgspec

from modelyard.engines.contract import ExitReport, LaunchSpec
from modelyard.records.base import Record, UnreadableRecord, encode

# Room for a tail of 50 lines at their longest, each character escaped.
MAX_FRAME_BYTES = 4 * 1024 * 1024


class ShimSpec(Record, tag_field="schema", tag="shim/v1"):
    """Everything a shim needs to run one launch of one replica; it lies in a file that only the owner can read.

    `folder` is the launch's private folder, where `spec.files` are written. `rendezvous` is the unix socket that the
    shim dials, `lease` the file that yard renews: `lease_s` after its last renewal nothing of the engine is left.
    The log at `log_path` is rotated at `log_max_bytes`, and `log_keep` older files stay beside it."""

    replica: str
    launch: str
    folder: str
    spec: LaunchSpec
    rendezvous: str
    lease: str
    log_path: str
    lease_s: float = 5.0
    log_max_bytes: int = 16 * 1024 * 1024
    log_keep: int = 3


class Hello(Record, tag_field="kind", tag="hello/v1"):
    """The first record on every connection: who is there. `started_at` is monotonic seconds (one clock per boot for
    all processes). The log's tail follows as LogLines, and Exited where the engine has ended already."""

    replica: str
    launch: str
    shim_pid: int
    engine_pid: int
    started_at: float


class LogLine(Record, tag_field="kind", tag="log/v1"):
    """One line of the engine's output, control characters escaped. `dropped` lines before it were not sent because
    nobody read them in time; the log file has them."""

    text: str
    dropped: int = 0


class Exited(Record, tag_field="kind", tag="exited/v1"):
    """The engine and every process that it started are gone. `asked`: they were told to go, by Stop or Kill."""

    report: ExitReport
    asked: bool


class Stop(Record, tag_field="kind", tag="stop/v1"):
    """SIGTERM to the engine's process group now, SIGKILL after `grace_s`."""

    grace_s: float


class Kill(Record, tag_field="kind", tag="kill/v1"):
    """SIGKILL to everything the engine started."""


class Release(Record, tag_field="kind", tag="release/v1"):
    """Exited was received: the shim may go. Refused, by silence, while the engine runs."""


FromShim = Hello | LogLine | Exited
ToShim = Stop | Kill | Release
T = TypeVar("T")

_from_shim = msgspec.json.Decoder[FromShim](FromShim)
_to_shim = msgspec.json.Decoder[ToShim](ToShim)


def frame(record: FromShim | ToShim) -> bytes:
    return encode(record) + b"\n"


def read_from_shim(line: bytes) -> FromShim:
    """Raises UnreadableRecord."""
    return _read(line, _from_shim)


def read_to_shim(line: bytes) -> ToShim:
    """Raises UnreadableRecord."""
    return _read(line, _to_shim)


def _read(line: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnreadableRecord(f"not what a shim and control say to each other: {error}") from error


def peer_uid(connection: socket.socket) -> int:
    """The user of the process at the other end, as the kernel vouches for it."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return uid

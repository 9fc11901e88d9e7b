"""Processes of an engine as the kernel knows them: who they are, whether they are gone, where they listen.

Linux's /proc, like the shim itself."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from modelyard.node.engine_process import GUARD_NAME

_SHOWN = 48  # characters of a program that is given in the command line itself
_LISTENING_TCP = "0A"
_ACCEPTS_CONNECTIONS = 0x10000  # __SO_ACCEPTCON in the flags of /proc/net/unix


@dataclass(frozen=True, slots=True)
class Process:
    """`pid` and `started` (clock ticks since boot) together are never given away again."""

    pid: int
    started: int
    name: str
    program: str

    def __str__(self) -> str:
        return self.program or self.name


def engine_processes(shim_pid: int) -> tuple[Process, ...]:
    """What the shim's engine consists of: its leader first, parents before children; the guard is ours."""
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (read := _read(int(entry))) is not None:
            process, parent = read
            children.setdefault(parent, []).append(process)
    found: list[Process] = []
    pending = [shim_pid]
    while pending:
        below = sorted(children.get(pending.pop(0), ()), key=lambda process: (process.started, process.pid))
        found += [process for process in below if process.name != GUARD_NAME]
        pending += [process.pid for process in below]
    return tuple(found)


def is_alive(process: Process) -> bool:
    read = _read(process.pid)
    return read is not None and read[0].started == process.started


def listeners(processes: Iterable[Process]) -> frozenset[str]:
    """Where they accept connections, as `unix:/path`, `unix:@abstract` or `http://host:port`."""
    found: set[str] = set()
    for process in processes:
        inodes = _socket_inodes(process.pid)
        if inodes:
            found |= _tcp(process.pid, inodes) | _unix(process.pid, inodes)
    return frozenset(found)


def _read(pid: int) -> tuple[Process, int] | None:
    """A living process and its parent's pid; None where it is gone, or only waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    # The name in parentheses may hold anything, a ")" too.
    head, _, tail = stat.rpartition(b")")
    fields = tail.split()
    if fields[0] in (b"Z", b"X"):
        return None
    name = head.partition(b"(")[2].decode(errors="replace")
    return Process(pid, int(fields[19]), name, _program(words)), int(fields[1])


def _program(words: list[str]) -> str:
    """The script or module that an interpreter runs, or the program itself: what tells an engine's processes apart."""
    for before, word in pairwise(words):
        if before == "-c":
            return word.strip()[:_SHOWN]
        if before == "-m" or word.endswith(".py"):
            return os.path.basename(word)
    return os.path.basename(words[0]) if words else ""


def _socket_inodes(pid: int) -> set[str]:
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for entry in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{entry}")
                if target.startswith("socket:["):
                    found.add(target[len("socket:[") : -1])
    return found


def _tcp(pid: int, inodes: set[str]) -> set[str]:
    found: set[str] = set()
    for table, show in (("tcp", _ipv4), ("tcp6", _ipv6)):
        for row in _rows(pid, table):
            if row[3] == _LISTENING_TCP and row[9] in inodes:
                host, _, port = row[1].partition(":")
                found.add(f"http://{show(host)}:{int(port, 16)}")
    return found


def _unix(pid: int, inodes: set[str]) -> set[str]:
    rows = (row for row in _rows(pid, "unix") if row[6] in inodes and int(row[3], 16) & _ACCEPTS_CONNECTIONS)
    return {f"unix:{' '.join(row[7:])}" for row in rows}


def _rows(pid: int, table: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
    except OSError:
        return []


def _ipv4(text: str) -> str:
    return socket.inet_ntoa(struct.pack("=I", int(text, 16)))


def _ipv6(text: str) -> str:
    words = (int(text[at : at + 8], 16) for at in range(0, 32, 8))
    return f"[{socket.inet_ntop(socket.AF_INET6, struct.pack('=4I', *words))}]"

"""Finding what belongs to a state directory: processes, listening ports, unix sockets, by what /proc says."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import tree

_LISTENING = "0A"


@dataclass(frozen=True)
class Process:
    """A process for as long as it lives: its number may be given away again, together with `started` it is unique."""

    pid: int
    started: int
    words: str

    @property
    def lives(self) -> bool:
        """A zombie does not."""
        found = _stat(self.pid)
        return found is not None and found[0] not in "ZX" and found[1] == self.started


def process(pid: int) -> Process | None:
    found = _stat(pid)
    if found is None or found[0] in "ZX":
        return None
    words = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid, found[1], words)


def of_state(root: Path, yard_pid: int | None = None) -> frozenset[Process]:
    """Every living process that names the state directory in its words or its environment, and the tree below yard;
    this process and its parents are not meant."""
    mark = os.fsencode(root)
    pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    named = {pid for pid in pids if mark in _read(pid, "cmdline") or mark in _read(pid, "environ")}
    pids = {descendant for pid in {*named, yard_pid or 0} - {0} for descendant in tree(pid)} - _me_and_parents()
    return frozenset(found for pid in pids if (found := process(pid)) is not None)


def name(pid: int) -> str:
    """The kernel's name for it; empty where it is gone."""
    return _read(pid, "comm").decode(errors="replace").strip()


def listening_ports(processes: Iterable[Process]) -> frozenset[int]:
    """TCP ports that they listen on."""
    inodes = {inode for one in processes for inode in _socket_inodes(one.pid)}
    return frozenset(port for port, inode in _listeners() if inode in inodes)


def is_listening(port: int) -> bool:
    return any(port == one for one, _ in _listeners())


def unix_sockets(folder: Path) -> list[str]:
    """Socket files in the folder, and sockets that some process still has bound there."""
    files = [path.name for path in folder.iterdir() if path.is_socket()]
    with open("/proc/net/unix") as table:
        bound = [line.split()[7] for line in table if len(line.split()) > 7]
    return sorted({*files, *(Path(path).name for path in bound if path.startswith(f"{folder}/"))})


def _listeners() -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(name).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        rows = [line.split() for line in lines]
        found += [(int(row[1].rpartition(":")[2], 16), int(row[9])) for row in rows if row[3] == _LISTENING]
    return found


def _socket_inodes(pid: int) -> set[int]:
    inodes = set[int]()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
    except OSError:
        pass
    return inodes


def _me_and_parents() -> set[int]:
    found, pid = set[int](), os.getpid()
    while pid > 1:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time in clock ticks since the boot."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return (fields[0].decode(), int(fields[19])) if len(fields) > 19 else None


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""

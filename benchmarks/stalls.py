"""How long an event loop keeps a neighbour waiting: a small request every few milliseconds beside the load."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks.processes import cpu_ns, tree, waited_ns
from benchmarks.subjects import CannotMeasure, Subject

EVERY_S = 0.002


@dataclass
class StallProbe:
    """Asks for the subject's health path over one connection of its own, in a thread.

    A stall is the answer's latency less the time in which the subject or the probe was ready to run and had no core:
    that part belongs to the machine. `raw_s` keeps it in."""

    subject: Subject
    stalls_s: list[float] = field(default_factory=list[float])
    raw_s: list[float] = field(default_factory=list[float])
    failed: str = ""

    def run(self, stop: threading.Event, pid: int) -> None:
        url = urlsplit(self.subject.address)
        request = f"GET {self.subject.health} HTTP/1.1\r\nhost: {url.netloc}\r\n\r\n".encode()
        me = threading.get_native_id()
        try:
            with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while not stop.wait(EVERY_S):
                    waited = waited_ns(pid) + waited_ns(os.getpid(), me)
                    began = time.perf_counter_ns()
                    connection.sendall(request)
                    answer = connection.recv(65536)
                    raw = time.perf_counter_ns() - began
                    waited = waited_ns(pid) + waited_ns(os.getpid(), me) - waited
                    if not answer.startswith(b"HTTP/1.1 200"):
                        raise OSError(f"{self.subject.health} answered {answer[:60]!r}")
                    self.raw_s.append(raw / 1e9)
                    self.stalls_s.append(max(raw - waited, 0) / 1e9)
        except OSError as error:
            self.failed = str(error) or type(error).__name__


@contextlib.contextmanager
def probing(subject: Subject) -> Generator[StallProbe]:
    """Raises CannotMeasure where the subject's health path does not answer."""
    assert subject.pid is not None and subject.health is not None
    probe, stop = StallProbe(subject), threading.Event()
    busiest = max(tree(subject.pid), key=lambda pid: cpu_ns([pid]))
    thread = threading.Thread(target=probe.run, args=(stop, busiest))
    thread.start()
    try:
        yield probe
    finally:
        stop.set()
        thread.join()
    if probe.failed or not probe.raw_s:
        raise CannotMeasure(f"the stalls of {subject.name} cannot be seen: {probe.failed or 'no answer in time'}")

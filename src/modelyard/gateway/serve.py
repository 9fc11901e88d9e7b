"""The gateway as a process: an inherited or a fresh listening socket, and the loops that keep it in step."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import gc
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvloop

from modelyard.gateway.accepting import Accepting
from modelyard.gateway.certificates import Certificates
from modelyard.gateway.journal import JournalWriter
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.limits import WIRE, WireLimits
from modelyard.gateway.listen import Tls
from modelyard.gateway.overload import CLOSED
from modelyard.gateway.pressure import Pressure, connections_at_most
from modelyard.gateway.service import Service
from modelyard.gateway.worker import Worker
from modelyard.lifeline import watch_lifeline

DRAIN_GRACE_S = 30.0
LISTEN_INTERVAL_S = 0.1
TRIM_INTERVAL_S = 1.0
# Names and numbers of mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def raise_descriptor_limit() -> None:
    """Each client and each engine connection is a descriptor; the default of 1,024 is soon gone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(
    sock: socket.socket,
    journal_folder: Path | None,
    prepare: Callable[[Service], list[asyncio.Task[None]]],
    *,
    tls: Tls | None = None,
    wire: WireLimits = WIRE,
    lifeline: int | None = None,
    on_listening: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT (then drain), until SIGUSR1 (another process serves the socket now: step aside), or
    until the lifeline ends (then at once). A signal after the first one cuts the draining short, a third ends at once.

    `prepare` fills the service and returns the tasks that keep it up to date."""
    raise_descriptor_limit()
    _keep_memory_for_a_moment()
    uvloop.run(_serve(sock, journal_folder, prepare, tls, wire, lifeline, on_listening))


async def _serve(
    sock: socket.socket,
    journal_folder: Path | None,
    prepare: Callable[[Service], list[asyncio.Task[None]]],
    tls: Tls | None,
    wire: WireLimits,
    lifeline: int | None,
    on_listening: Callable[[], None] | None,
) -> None:
    loop = asyncio.get_running_loop()
    journal = JournalWriter(journal_folder)
    pressure = Pressure.of_this_process()
    wire = dataclasses.replace(wire, connections=connections_at_most(wire.connections, pressure.descriptors))
    service = Service(Worker(journal, Keyring(), wire))
    service.worker.pressure = pressure
    tasks = prepare(service)
    tasks += [loop.create_task(service.sweep_forever()), loop.create_task(journal.sync_forever(service.is_sent))]
    tasks.append(loop.create_task(service.worker.doubts.settle_forever(service.worker.admissions)))
    certificates = Certificates(tls) if tls is not None else None
    if certificates is not None:
        tasks.append(loop.create_task(certificates.follow_forever()))
    ending = _Ending()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, ending.stop)
    loop.add_signal_handler(signal.SIGUSR1, ending.step_aside)
    if lifeline is not None:
        watch_lifeline(loop, lifeline)
    shared = service.group is not None
    accepting = Accepting(sock, service.connection, certificates.context if certificates else None, shared=shared)
    await accepting.start()
    listening = loop.create_task(_accept_forever(accepting, pressure))
    tasks.append(listening)
    _calm_the_collector()
    trimming = loop.create_task(_give_memory_back_forever())
    if on_listening is not None:
        on_listening()
    await _until_stopped(ending.asked, tasks)
    listening.cancel()
    if ending.is_replaced:
        accepting.pause()
        is_sent = await service.step_aside(DRAIN_GRACE_S, ending.hurry)
    else:
        is_sent = await service.drain(DRAIN_GRACE_S, ending.hurry)
        accepting.pause()
    for task in (*tasks, trimming):
        task.cancel()
    journal.close(is_sent=is_sent)


async def _accept_forever(accepting: Accepting, pressure: Pressure) -> None:
    while True:
        await asyncio.sleep(LISTEN_INTERVAL_S)
        await accepting.follow(pressure.level >= CLOSED)


async def _until_stopped(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Until the signal; a background task that fails ends the process, because nobody would hold deadlines then."""
    stopping = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def _calm_the_collector() -> None:
    """Nothing on the path of a request makes reference cycles that matter: what lives now lives to the end, and the
    collector looks at the rest a hundred times less often than it would."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(70_000, 20, 100)


def _keep_memory_for_a_moment() -> None:
    """glibc gives a large block back to the kernel as soon as it is free, and each page of the next one costs a fault:
    40 % of what a body of 1 MB took here (1,193 against 725 us). Elsewhere the allocator has no such call."""
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(M_MMAP_THRESHOLD, 32 << 20)
        tune(M_TRIM_THRESHOLD, 128 << 20)


async def _give_memory_back_forever() -> None:
    """What large bodies needed once, tens of megabytes, would stay behind a few small objects that live on. Asking
    for it costs a quarter of a millisecond."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(TRIM_INTERVAL_S)
        trim(0)


class _Ending:
    """What the signals so far ask for."""

    def __init__(self) -> None:
        self.asked, self.hurry = asyncio.Event(), asyncio.Event()
        self.is_replaced = False
        self._stops = 0

    def stop(self) -> None:
        self._stops += 1
        if self._stops > 2:
            raise SystemExit(130)
        if self._stops > 1:
            self.hurry.set()
        self.asked.set()

    def step_aside(self) -> None:
        if not self.asked.is_set():
            self.is_replaced = True
            self.asked.set()

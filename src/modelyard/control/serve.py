"""Control as a process: inherited sockets in, engines out."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket

import uvicorn

from modelyard.clock import SYSTEM
from modelyard.control.api import make_app
from modelyard.control.audit_log import AuditLog
from modelyard.control.debugging import DebugWindows
from modelyard.control.fleet import Fleet
from modelyard.control.key_log import KeyWriter
from modelyard.control.measurements import Measurements
from modelyard.control.publisher import Publisher
from modelyard.control.replica_loop import Surroundings
from modelyard.hardware.machine import probe
from modelyard.lifeline import watch_lifeline
from modelyard.node.shims import ShimListener
from modelyard.state import StateDirectory, admin_key


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: what a signal means is decided below."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


async def serve(state: StateDirectory, admin: socket.socket, rendezvous: socket.socket, lifeline: int, lease_s: float):
    """Run until SIGTERM: then every engine is drained and ended; SIGINT ends them without waiting for their requests.
    Ends at once with the lifeline; engines live on."""
    loop = asyncio.get_running_loop()
    watch_lifeline(loop, lifeline)
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: (stop.set(), hurry.set()))
    around = Surroundings(
        state=state,
        machine=probe(),
        clock=SYSTEM,
        publisher=Publisher(state),
        rendezvous=str(state.rendezvous),
        lease_s=lease_s,
    )
    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(around, tasks)
        seen = Measurements(state, fleet, SYSTEM)
        audit = AuditLog(state, SYSTEM)
        windows = DebugWindows(state, around.publisher, audit, SYSTEM)
        app = make_app(state, admin_key(state), fleet, KeyWriter(state, SYSTEM), seen, audit, windows)
        server = _Server(
            uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        )
        running = [
            tasks.create_task(ShimListener(rendezvous).accept_forever(fleet.connected)),
            tasks.create_task(server.serve(sockets=[admin])),
            tasks.create_task(seen.follow_forever()),
            tasks.create_task(windows.sweep_forever()),
            tasks.create_task(fleet.begin()),
            tasks.create_task(fleet.renew_forever()),
        ]
        await stop.wait()
        await fleet.stop_all(hurry)
        server.should_exit = True
        await running[1]
        fleet.close()
        for task in running:
            task.cancel()

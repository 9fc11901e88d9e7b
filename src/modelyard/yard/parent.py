"""The parent: owns the listening sockets, renews the lease, keeps control and gateway alive. No parsing, no policy."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from modelyard import __version__
from modelyard.clock import Clock
from modelyard.gateway.limits import WIRE
from modelyard.gateway.listen import Tls, listening_socket
from modelyard.node.lease import RENEW_EVERY_S, Lease
from modelyard.records.base import encode
from modelyard.records.listening import Gateways, Listening
from modelyard.state import StateDirectory, admin_key, locked, write_atomically
from modelyard.yard.children import Child
from modelyard.yard.gateways import DRAIN_WITHIN_S, GatewayProcesses

CONTROL_DRAIN_S = 60.0
# Clients wait in the gateway's backlog, and it starts in a tenth of a second; engines serve on without control.
GATEWAY_BACKOFF_S = 1.0
CONTROL_BACKOFF_S = 3.0


STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
RELOADING = signal.SIGHUP


@dataclass(frozen=True, slots=True)
class YardSettings:
    """`children_environ` is what control and gateway get; engines get what their adapters name. `watched` is the
    reading end of a pipe: its end stops the yard, a byte from it says that nobody watches any more. `workers` is the
    number of gateway processes."""

    host: str
    port: int
    tls: Tls | None
    lease_s: float
    children_environ: dict[str, str]
    watched: int | None = None
    workers: int = 1
    connections_per_address: int = WIRE.connections_per_address


class Yard:
    """Runs until it is told to stop; whatever its children do, the sockets stay open.

    The first SIGTERM (or SIGINT) lets running requests finish; a second one cuts them short. SIGHUP replaces the
    gateway's processes by new ones of the program as it is now on disk."""

    def __init__(self, state: StateDirectory, settings: YardSettings, clock: Clock) -> None:
        self._state, self._settings, self._clock = state, settings, clock
        self._stopping = self._hurried = self._reload_asked = False
        self._gateways: GatewayProcesses | None = None
        self._control: Child | None = None
        self._told: Gateways | None = None

    def run(self, on_listening: Callable[[Listening], None]) -> None:
        """Raises StateLocked where another yard runs here, AddressInUse where the port is taken."""
        with contextlib.ExitStack() as held:
            held.enter_context(locked(self._state.yard_lock, holding="serving from this state directory"))
            public = held.enter_context(listening_socket(self._settings.host, self._settings.port))
            admin = held.enter_context(listening_socket("127.0.0.1", 0))
            rendezvous = held.enter_context(_rendezvous(self._state.rendezvous))
            for left in (self._state.rendezvous, self._state.admission, self._state.admission.with_suffix(".lock")):
                held.callback(left.unlink, missing_ok=True)
            lease = held.enter_context(Lease(self._state.lease))
            lease.renew()
            admin_key(self._state)  # made before anyone can ask for it
            lifeline_read, lifeline_write = os.pipe()
            held.callback(os.close, lifeline_read)
            held.callback(os.close, lifeline_write)
            wakeup = held.enter_context(_signals())
            self._make_children(held, public, admin, rendezvous, lifeline_read)
            listening = self._listening(public, admin)
            write_atomically(self._state.yard, encode(listening))
            held.callback(self._state.yard.unlink, missing_ok=True)
            held.callback(self._state.gateways.unlink, missing_ok=True)
            on_listening(listening)
            self._watch(lease, wakeup)
            gateways, control = self._children()
            self._end(gateways.stop(), DRAIN_WITHIN_S, lease, wakeup)
            # Nobody answers here any more: who comes now is refused, and does not wait for the engines to end.
            public.close()
            self._end([control], CONTROL_DRAIN_S, lease, wakeup)
            lease.end()

    def _make_children(
        self,
        held: contextlib.ExitStack,
        public: socket.socket,
        admin: socket.socket,
        rendezvous: socket.socket,
        life: int,
    ) -> None:
        state, tls, workers = self._state, self._settings.tls, self._settings.workers
        python = [sys.executable, "-I", "-m"]
        common = ["--state", str(state.root), "--lifeline-fd", str(life)]
        gateway_argv = [*python, "modelyard.gateway", *common, "--listen-fd", str(public.fileno())]
        if tls is not None:
            gateway_argv += ["--tls-cert", str(tls.certificate), "--tls-key", str(tls.key)]
            gateway_argv += ["--tls-client-ca", str(tls.client_ca)] if tls.client_ca is not None else []
        gateway_argv += ["--connections-per-address", str(self._settings.connections_per_address)]
        sockets = ["--admin-fd", str(admin.fileno()), "--rendezvous-fd", str(rendezvous.fileno())]
        control_argv = [*python, "modelyard.control", *common, *sockets, "--lease-s", str(self._settings.lease_s)]
        environ = self._settings.children_environ
        gateway_log = held.enter_context((state.logs / "gateway.log").open("ab"))
        control_log = held.enter_context((state.logs / "control.log").open("ab"))
        shared = (public.fileno(), life)

        def make(number: int) -> Child:
            role = "gateway" if workers == 1 else f"gateway {number}"
            argv = gateway_argv if workers == 1 else [*gateway_argv, "--worker", str(number), "--workers", str(workers)]
            return Child(role, argv, shared, gateway_log, environ, GATEWAY_BACKOFF_S, tells_ready=True)

        self._gateways = GatewayProcesses(workers, make, self._clock.jitter, _say)
        descriptors = (admin.fileno(), rendezvous.fileno(), life)
        self._control = Child("control", control_argv, descriptors, control_log, environ, CONTROL_BACKOFF_S)

    def _listening(self, public: socket.socket, admin: socket.socket) -> Listening:
        host, port = public.getsockname()[:2]
        scheme = "https" if self._settings.tls is not None else "http"
        shown = f"[{host}]" if ":" in host else host
        return Listening(
            pid=os.getpid(),
            url=f"{scheme}://{shown}:{port}/v1",
            admin=f"http://127.0.0.1:{admin.getsockname()[1]}",
            started_at=self._clock.wall(),
            version=__version__,
        )

    def _watch(self, lease: Lease, wakeup: socket.socket) -> None:
        gateways, control = self._children()
        starter = self._settings.watched
        watched: list[int] = [wakeup.fileno()] if starter is None else [wakeup.fileno(), starter]
        while not self._stopping:
            lease.renew()
            now = self._clock.monotonic()
            if self._reload_asked:
                self._reload_asked = False
                gateways.reload(now)
            gateways.look(now)
            control.look(now, self._clock.jitter, _say)
            self._tell_of_gateways(gateways)
            pause_s = 0.05 if gateways.is_any_down() or control.process is None else RENEW_EVERY_S
            readable, _, _ = select.select([*watched, *gateways.ready_fds()], [], [], pause_s)
            if wakeup.fileno() in readable:
                self._hear(wakeup)
            if starter in readable:
                # A byte lets us go on alone; the end means that the command that started us is gone.
                self._stopping |= os.read(starter, 1) == b""
                watched.remove(starter)

    def _hear(self, wakeup: socket.socket) -> None:
        for number in wakeup.recv(64):
            if number in STOPPING:
                self._hurried = self._stopping
                self._stopping = True
            elif number == RELOADING:
                self._reload_asked = True

    def _tell_of_gateways(self, gateways: GatewayProcesses) -> None:
        """Into the file that `status` and `reload` read: when something has changed, and never so that we wait for the
        disk."""
        seen = gateways.seen()
        if seen == self._told:
            return
        self._told = seen
        path = self._state.gateways
        fresh = path.with_name(f".{path.name}.fresh")
        with contextlib.suppress(OSError):
            fresh.write_bytes(encode(seen))
            os.replace(fresh, path)

    def _end(self, children: list[Child], patience_s: float, lease: Lease, wakeup: socket.socket) -> None:
        """Ask them to end and wait until they have: the gateway finishes its requests, control ends the engines."""
        hurried = self._hurried
        for child in children:
            child.signal(signal.SIGTERM)
            if hurried:
                child.signal(signal.SIGINT)
        deadline = self._clock.monotonic() + patience_s
        while not all(child.has_ended() for child in children):
            lease.renew()
            select.select([wakeup], [], [], RENEW_EVERY_S)
            with contextlib.suppress(BlockingIOError):
                self._hear(wakeup)
            hurry, hurried = self._hurried and not hurried, self._hurried
            late = self._clock.monotonic() > deadline
            if late:
                deadline = float("inf")
            for child in children if hurry or late else ():
                child.signal(signal.SIGKILL if late else signal.SIGINT)

    def _children(self) -> tuple[GatewayProcesses, Child]:
        assert self._gateways is not None and self._control is not None
        return self._gateways, self._control


def _rendezvous(path: Path) -> socket.socket:
    """The unix socket that shims dial. Files of a dead yard are replaced; we hold the state directory's lock."""
    for left in (path, *path.parent.glob(f"{path.name}.*")):
        left.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Bound under another name first: whoever dials finds a socket that listens, or none.
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    sock.bind(str(fresh))
    os.chmod(fresh, 0o600)
    sock.listen(1024)
    os.rename(fresh, path)
    return sock


@contextlib.contextmanager
def _signals() -> Generator[socket.socket]:
    """A socket that becomes readable with the numbers of the signals that came."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    handled = (*STOPPING, RELOADING, signal.SIGCHLD)
    before = {number: signal.signal(number, _wake) for number in handled}
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def _wake(number: int, frame: FrameType | None) -> None:
    """The number travels through the wakeup socket; a handler must exist for it to do so."""


def _say(text: str) -> None:
    # A full disk must not end what is being served.
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}", flush=True)

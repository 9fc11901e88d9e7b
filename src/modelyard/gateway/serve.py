"""The gateway as a process: an inherited or a fresh listening socket, and the loops that keep it in step."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from modelyard.errors import AddressInUse, UsageError
from modelyard.gateway.journal import JournalWriter
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.service import Service
from modelyard.gateway.worker import Worker
from modelyard.lifeline import watch_lifeline

DRAIN_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class Tls:
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Raises UsageError where the files do not make a server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"the TLS certificate or key cannot be used: {error}", hint="both must be PEM files"
            ) from error
        return context


def check_bind(host: str, *, has_key: bool, has_tls: bool, insecure: bool) -> None:
    """The rule for listening beyond loopback. Raises AddressInUse's refusal with what is missing."""
    if host in ("127.0.0.1", "::1", "localhost") or host.startswith("127.") or insecure:
        return
    missing = [what for what, there in (("a key", has_key), ("TLS", has_tls)) if not there]
    if missing:
        raise AddressInUse(
            f"{host} is reachable from other machines, and {' and '.join(missing)} is missing",
            hint="give --tls-cert and --tls-key and keep keys on, or say --insecure-listen if something else guards it",
        )


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound, listening TCP socket. Raises AddressInUse in plain words."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(4096)
    except OSError as error:
        sock.close()
        raise AddressInUse(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint=f"another program has the port; choose one with --port, or see who: ss -ltnp 'sport = :{port}'",
        ) from error
    sock.setblocking(False)
    return sock


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
    lifeline: int | None = None,
    on_listening: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT (then drain), or until the lifeline ends (then at once).

    `prepare` fills the service and returns the tasks that keep it up to date."""
    raise_descriptor_limit()
    uvloop.run(_serve(sock, journal_folder, prepare, tls, lifeline, on_listening))


async def _serve(
    sock: socket.socket,
    journal_folder: Path | None,
    prepare: Callable[[Service], list[asyncio.Task[None]]],
    tls: Tls | None,
    lifeline: int | None,
    on_listening: Callable[[], None] | None,
) -> None:
    loop = asyncio.get_running_loop()
    journal = JournalWriter(journal_folder)
    service = Service(Worker(journal, Keyring()))
    tasks = prepare(service)
    tasks += [loop.create_task(service.sweep_forever()), loop.create_task(journal.sync_forever())]
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, _stop_or_exit, stop)
    if lifeline is not None:
        watch_lifeline(loop, lifeline)
    server = await loop.create_server(service.connection, sock=sock, ssl=tls.context() if tls else None, backlog=4096)
    if on_listening is not None:
        on_listening()
    await stop.wait()
    server.close()
    await service.drain(DRAIN_GRACE_S)
    for task in tasks:
        task.cancel()
    journal.close()


def _stop_or_exit(stop: asyncio.Event) -> None:
    """The first signal drains; the second one means now."""
    if stop.is_set():
        raise SystemExit(130)
    stop.set()

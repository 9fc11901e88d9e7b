"""`python -m modelyard.gateway`: the gateway as yard starts it, on inherited descriptors."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import socket
import time
from pathlib import Path

from modelyard.gateway import limits, serve
from modelyard.gateway.debug_window import DebugFiles
from modelyard.gateway.group import Group
from modelyard.gateway.listen import tls_of
from modelyard.gateway.seeding import Seeding
from modelyard.gateway.service import Follower, Service
from modelyard.state import StateDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, help="where to say by one byte that it serves")
    parser.add_argument("--workers", type=int, default=1, help="how many of us share the listening socket")
    parser.add_argument("--worker", type=int, default=0, help="which of them this is")
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--tls-client-ca", type=Path)
    parser.add_argument("--connections-per-address", type=int, default=limits.WIRE.connections_per_address)
    chosen = parser.parse_args()
    state = StateDirectory(chosen.state)
    tls = tls_of(chosen.tls_cert, chosen.tls_key, chosen.tls_client_ca)
    wire = dataclasses.replace(limits.WIRE, connections_per_address=chosen.connections_per_address)

    def follow(service: Service) -> list[asyncio.Task[None]]:
        loop = asyncio.get_running_loop()
        service.worker.debug = DebugFiles(state.debug, service.worker.journal.worker)
        worker = service.worker
        seeding = Seeding(worker.accounts, worker.keyring, state.spending, state.journal)
        follower = Follower(service, state.topology, state.keys, lambda: seeding.seed(time.time()))
        tasks: list[asyncio.Task[None]] = []
        if chosen.workers > 1:
            service.group = Group(state.admission, chosen.workers, service.worker.admissions, follower.follow)
            tasks.append(loop.create_task(service.group.keep_forever()))
        follower.follow()
        return [*tasks, loop.create_task(follower.follow_forever())]

    sock = socket.socket(fileno=chosen.listen_fd)
    sock.setblocking(False)
    serve.run(
        sock,
        state.journal,
        follow,
        tls=tls,
        wire=wire,
        lifeline=chosen.lifeline_fd,
        on_listening=lambda: _tell_ready(chosen.ready_fd),
    )


def _tell_ready(descriptor: int | None) -> None:
    if descriptor is not None:
        os.write(descriptor, b".")
        os.close(descriptor)


if __name__ == "__main__":
    main()

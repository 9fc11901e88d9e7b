"""`python -m modelyard.gateway`: the gateway as yard starts it, on inherited descriptors."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import socket
from pathlib import Path

from modelyard.gateway import limits, serve
from modelyard.gateway.debug_window import DebugFiles
from modelyard.gateway.group import Group
from modelyard.gateway.listen import tls_of
from modelyard.gateway.seeding import Seeding
from modelyard.gateway.service import Follower, Service
from modelyard.state import StateDirectory

# A third of the silence that yard bears.
ALIVE_EVERY_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    parser.add_argument(
        "--ready-fd", type=int, help="where to say by a byte that it serves, and by more that it still does"
    )
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
        worker = service.worker
        worker.debug = DebugFiles(state.debug, worker.journal.worker)
        seeding = Seeding(worker.keyring, state.spending, state.journal)
        follower = Follower(service, state.topology, state.keys, lambda: seeding.keys_changed(worker.accounts))
        tasks: list[asyncio.Task[None]] = []
        if chosen.workers > 1:
            look, keyring = follower.follow, worker.keyring
            group = Group(state.admission, chosen.workers, worker.admissions, keyring, seeding, worker.journal, look)
            service.group, worker.accounts = group, group.accounts
            tasks.append(loop.create_task(group.keep_forever()))
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
        on_listening=lambda: _begin_to_tell(chosen.ready_fd),
    )


def _begin_to_tell(descriptor: int | None) -> None:
    if descriptor is not None:
        os.set_blocking(descriptor, False)
        _tell(descriptor)


def _tell(descriptor: int) -> None:
    """By the event loop itself: where it stands still, nothing is told, and yard ends us."""
    # A yard that does not listen has a reason that is no business of ours.
    with contextlib.suppress(OSError):
        os.write(descriptor, b".")
    asyncio.get_running_loop().call_later(ALIVE_EVERY_S, _tell, descriptor)


if __name__ == "__main__":
    main()

"""`python -m modelyard.gateway`: the gateway as yard starts it, on inherited descriptors."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import socket
import time
from pathlib import Path

from modelyard.gateway import limits, serve
from modelyard.gateway.debug_window import DebugFiles
from modelyard.gateway.listen import tls_of
from modelyard.gateway.seeding import seed
from modelyard.gateway.service import Follower, Service
from modelyard.state import StateDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--tls-client-ca", type=Path)
    parser.add_argument("--connections-per-address", type=int, default=limits.WIRE.connections_per_address)
    chosen = parser.parse_args()
    state = StateDirectory(chosen.state)
    tls = tls_of(chosen.tls_cert, chosen.tls_key, chosen.tls_client_ca)
    wire = dataclasses.replace(limits.WIRE, connections_per_address=chosen.connections_per_address)

    def follow(service: Service) -> list[asyncio.Task[None]]:
        service.worker.debug = DebugFiles(state.debug, service.worker.journal.worker)
        follower = Follower(service, state.topology, state.keys)
        follower.follow()
        worker = service.worker
        seed(worker.accounts, worker.keyring, state.spending, state.journal, time.time())
        return [asyncio.get_running_loop().create_task(follower.follow_forever())]

    sock = socket.socket(fileno=chosen.listen_fd)
    sock.setblocking(False)
    serve.run(sock, state.journal, follow, tls=tls, wire=wire, lifeline=chosen.lifeline_fd)


if __name__ == "__main__":
    main()

"""`python -m modelyard.control`: control as yard starts it."""

from __future__ import annotations

import argparse
import asyncio
import socket
from pathlib import Path

from modelyard.control.serve import serve
from modelyard.state import StateDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--admin-fd", type=int, required=True)
    parser.add_argument("--rendezvous-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    parser.add_argument("--lease-s", type=float, required=True)
    chosen = parser.parse_args()
    admin = socket.socket(fileno=chosen.admin_fd)
    rendezvous = socket.socket(fileno=chosen.rendezvous_fd)
    asyncio.run(serve(StateDirectory(chosen.state), admin, rendezvous, chosen.lifeline_fd, chosen.lease_s))


if __name__ == "__main__":
    main()

"""What a service manager is told: systemd's notification protocol, one datagram to the socket that it names.

Protocol: sd_notify(3). Nothing is said where nobody asks, and a manager that is gone is no reason to fail."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

READY, STOPPING = "READY=1", "STOPPING=1"


def tell(environ: Mapping[str, str], *lines: str) -> None:
    """Send `lines`, such as READY and `STATUS=...`, to the socket in NOTIFY_SOCKET, if there is one."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # A leading @ stands for the zero byte of an abstract address.
    path = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(path)
        sock.send("\n".join(lines).encode())

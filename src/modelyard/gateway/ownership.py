"""Which of several workers owns, and where it is reached.

The owner is the worker that holds a lock which the kernel frees when its holder ends, however it ends. Whoever holds it
binds the socket that the others dial."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from pathlib import Path


class Ownership:
    """One worker's part in it: the lock beside `address`, the path of the socket."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self._lock = -1
        self._is_bound = False

    def take(self) -> bool:
        """Whether this worker has the lock now; nobody is waited for."""
        if self._lock < 0:
            self._lock = os.open(self.address.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def bind(self) -> socket.socket:
        """The socket, which listens."""
        # Bound under another name first: whoever dials finds a socket that listens, or none.
        fresh = self.address.with_name(f"{self.address.name}.{secrets.token_hex(4)}")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind(str(fresh))
        os.chmod(fresh, 0o600)
        sock.listen(64)
        os.rename(fresh, self.address)
        self._is_bound = True
        return sock

    def release(self) -> None:
        """Another worker may own."""
        if self._is_bound:
            self._is_bound = False
            self.address.unlink(missing_ok=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

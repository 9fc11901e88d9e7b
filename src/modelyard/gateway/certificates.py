"""Certificates that change while they serve: a handshake gets what the files held last, open connections keep theirs.

The listening socket has one context for good; it hands each handshake over to the newest one. (Loading a new chain into
the same context would leave a key of another type beside it, and would never take an authority away.)"""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import Any

from modelyard.errors import UsageError
from modelyard.gateway.listen import Tls

FOLLOW_INTERVAL_S = 1.0

_Stamp = tuple[tuple[int, int, int, int], ...]


class Certificates:
    """`context` is what a server is created with. Raises UsageError where the files cannot be used at the start."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen = self._stamp()
        self._newest = tls.context()
        self._complaint = ""
        self.context = tls.context()
        self.context.sni_callback = self._hand_over

    def follow(self) -> bool:
        """Take in what has changed; whether something has. What cannot be used leaves everything as it was, is said
        once, and is tried again: certificate and key are two files, and one of them is replaced first."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return False
            self._newest = self._tls.context()
        except (OSError, UsageError) as error:
            self._complain(str(error))
            return False
        self._seen, self._complaint = stamp, ""
        return True

    async def follow_forever(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_INTERVAL_S)
            if self.follow():
                print(f"serving with the new certificate in {self._tls.certificate}", flush=True)

    def _hand_over(self, connection: ssl.SSLObject | Any, name: str | None, context: ssl.SSLContext) -> None:
        """OpenSSL asks for every handshake, also for those that name no server."""
        connection.context = self._newest

    def _stamp(self) -> _Stamp:
        found = [os.stat(path) for path in self._tls.files]
        return tuple((one.st_dev, one.st_ino, one.st_mtime_ns, one.st_size) for one in found)

    def _complain(self, text: str) -> None:
        """Once, not at every look."""
        if text != self._complaint:
            self._complaint = text
            print(f"error: {text}; the certificate before it serves on", flush=True)

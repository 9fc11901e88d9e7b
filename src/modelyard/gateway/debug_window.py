"""While a debug window is open: what a deployment's clients send and are sent, in files of their own.

The window is a time in the topology, compared once for each request: it closes by itself, whoever is dead by then.
Nothing of this reaches the journal, a log or a metric."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from modelyard.gateway.request import Request
from modelyard.records.base import encode
from modelyard.records.debug import Overheard
from modelyard.records.topology import Deployment

# Of a prompt and of an answer; and of a file, after which nothing more is written until it is removed.
KEPT_BYTES = 1024 * 1024
FILE_BYTES = 256 * 1024 * 1024


class Ended(Protocol):
    """An exchange that has ended."""

    request: Request


class Talker(Protocol):
    """The client whose conversation it is."""

    @property
    def paused(self) -> bool: ...

    def write(self, data: bytes) -> None: ...

    def exchange_ended(self, exchange: Any) -> None: ...


C = TypeVar("C", bound=Talker)


@dataclass(frozen=True, slots=True)
class DebugFiles:
    """One file for each deployment and worker, in a folder that only the owner can read."""

    folder: Path
    worker: str

    def append(self, overheard: Overheard) -> None:
        """A full disk, or a file that is full, must not end service: then it is not written, and said so."""
        path = self.folder / f"{quote(overheard.deployment, safe='')}.{self.worker}.ndjson"
        line = encode(overheard) + b"\n"
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            try:
                if os.fstat(descriptor).st_size + len(line) > FILE_BYTES:
                    raise OSError(f"it would be larger than {FILE_BYTES} bytes")
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                print(f"error: debug window: {path.name}: {error.strerror or error}", flush=True)


class Overhearing:
    """Stands where a client stands and keeps what passes, until `until` (Unix seconds)."""

    def __init__(self, client: Talker, files: DebugFiles, deployment: Deployment) -> None:
        self._client, self._files, self._deployment = client, files, deployment.name
        self._until = deployment.debug_until
        self._parts: list[bytes] = []
        self._room = KEPT_BYTES
        self._cut = False

    @property
    def paused(self) -> bool:
        return self._client.paused

    def write(self, data: bytes) -> None:
        kept = data[: self._room] if time.time() < self._until else b""
        if kept:
            self._parts.append(kept)
            self._room -= len(kept)
        self._cut = self._cut or len(kept) < len(data)
        self._client.write(data)

    def exchange_ended(self, exchange: Ended) -> None:
        """All of it has passed. The client comes first."""
        self._client.exchange_ended(exchange)
        request = exchange.request
        self._files.append(
            Overheard(
                request_id=request.id,
                at=request.at,
                deployment=self._deployment,
                key_id=request.key.id,
                endpoint=request.route.endpoint,
                prompt=request.body[:KEPT_BYTES].decode("utf-8", "replace"),
                answer=b"".join(self._parts).decode("utf-8", "replace"),
                cut=self._cut or len(request.body) > KEPT_BYTES,
            )
        )


def overheard(client: C, files: DebugFiles | None, deployment: Deployment) -> C | Overhearing:
    """The client of a request whose deployment has its window open; itself where there is no place to write."""
    return client if files is None else Overhearing(client, files, deployment)

"""One file from a server to this disk, whatever happens on the way: whole and checked, or not there.

The unfinished file is named by the hash that it must have in the end, so that any later fetch of the same content may
go on from it, from whichever server. What arrived is judged by that hash alone. Bytes of two fetches that do not fit
together (the server changed its mind meanwhile) cost one fetch from the beginning."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from modelyard.clock import Clock
from modelyard.errors import FetchFailed
from modelyard.models.hashing import CHUNK_BYTES, Progress, sha256_of_file
from modelyard.models.web import Answer, Interrupted, Unreachable, Web, raise_if_passing

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
# What to say of an answer that is neither the file nor a passing trouble.
Refusal = Callable[[Answer], FetchFailed]


@dataclass(frozen=True, slots=True)
class Expected:
    """What must arrive: `sha256`, or for a small file of a git repository `git_sha1` (of its blob). `size_bytes` is
    None where nobody has said it. Where no hash is known, nothing is resumed, since nothing could judge the result."""

    size_bytes: int | None
    sha256: str = ""
    git_sha1: str = ""

    @property
    def hash_name(self) -> str:
        """Empty where no hash is known."""
        return f"sha256-{self.sha256}" if self.sha256 else f"git-{self.git_sha1}" if self.git_sha1 else ""


class Meter:
    """One progress over several files, in bytes."""

    def __init__(self, on_progress: Progress, total: int | None) -> None:
        self.on_progress, self._total = on_progress, total
        self._at: dict[Path, int] = {}

    def at(self, path: Path, size_bytes: int) -> None:
        self._at[path] = size_bytes
        self.on_progress("fetch", sum(self._at.values()), self._total)


class Unwritable(Exception):
    """The disk refuses; `error` says why. Not an OSError: that is what a broken connection is."""

    def __init__(self, error: OSError, missing_bytes: int) -> None:
        super().__init__(str(error))
        self.error, self.missing_bytes = error, missing_bytes


class _Misfit(Exception):
    """Not what was promised."""


@dataclass
class Download:
    """`path` is the unfinished file, on the store's disk."""

    web: Web
    url: str
    path: Path
    expected: Expected
    meter: Meter
    refusal: Refusal
    clock: Clock
    token: str = ""
    _etag: str = ""
    _joined: bool = False
    _answered: bool = False

    async def run(self) -> str:
        """Bring `path` to what is expected, going on from what it holds; the SHA-256 of what is there then.

        Raises FetchFailed and Unwritable. What has arrived stays for the next time, unless it turned out wrong."""
        if not self.expected.hash_name:
            self._drop()
        self._joined = self._size() > 0
        try:
            return await self._receive_and_check()
        except _Misfit as misfit:
            self._drop()
            if not self._joined:
                raise self._wrong(misfit) from None
        # Bytes of two answers were joined, perhaps of different content: from the beginning, once.
        try:
            return await self._receive_and_check()
        except _Misfit as misfit:
            self._drop()
            raise self._wrong(misfit) from None

    def _wrong(self, misfit: _Misfit) -> FetchFailed:
        return FetchFailed(
            f"{self._shown} is not what was promised: {misfit}",
            hint="nothing of it was kept: the server, or something on the way to it, is broken or lies; "
            "try again, or another mirror",
        )

    async def _receive_and_check(self) -> str:
        await self._receive()
        self.meter.at(self.path, self._size())
        return await asyncio.to_thread(self._checked)

    async def _receive(self) -> None:
        """Attempts that bring the file further than any before them are not counted."""
        furthest, failures = self._size(), 0
        while self._size() != self.expected.size_bytes:
            try:
                await self._attempt()
                return
            except (Interrupted, Unreachable) as error:
                # Who never answered is told at once; who did may come back.
                if isinstance(error, Unreachable) and not self._answered:
                    raise
                reason = error if isinstance(error, Interrupted) else Interrupted(error.message)
                failures = 1 if self._size() > furthest else failures + 1
                furthest = max(furthest, self._size())
                await self.web.wait_after(reason, failures, self.clock.jitter())

    async def _attempt(self) -> None:
        begin = self._size()
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        if begin and self._etag:
            headers["If-Range"] = self._etag
        async with self.web.ask(self.url, headers=headers, token=self.token) as answer:
            self._answered = True
            raise_if_passing(answer)
            if answer.status == 416 and begin:
                self._drop()
                raise Interrupted(f"{answer.origin} has no more of {self._shown}")
            if answer.status not in (200, 206):
                raise self.refusal(answer)
            begin = self._beginning(answer, begin)
            self._check_announced(answer, begin)
            etag = answer.response.headers.get("ETag", "")
            # A weak one says "much the same", which is no ground to join bytes on.
            self._etag = "" if etag.startswith("W/") else etag
            await self._write(answer, begin)
        if self.expected.size_bytes is not None and self._size() < self.expected.size_bytes:
            raise Interrupted(f"{answer.origin} ended early")

    def _beginning(self, answer: Answer, asked: int) -> int:
        """Where the bytes of this answer belong: a server may have passed over that we asked for a range."""
        if answer.status == 200:
            return 0
        found = _CONTENT_RANGE.fullmatch(answer.response.headers.get("Content-Range", ""))
        total = self.expected.size_bytes
        if found and int(found[1]) == asked and (found[2] == "*" or total is None or int(found[2]) == total):
            self._joined = self._joined or asked > 0
            return asked
        self._drop()
        raise Interrupted(f"{answer.origin} answers another range than was asked for")

    def _check_announced(self, answer: Answer, begin: int) -> None:
        if answer.response.headers.get("Content-Encoding", "identity") != "identity":
            raise FetchFailed(
                f"{answer.origin} sends {self._shown} compressed, though it was asked not to",
                hint="a proxy on the way meddles: name another mirror in HF_ENDPOINT, or go round the proxy (NO_PROXY)",
            )
        announced, expected = answer.response.content_length, self.expected.size_bytes
        if announced is not None and expected is not None and begin + announced != expected:
            raise FetchFailed(
                f"{answer.origin} announces {begin + announced:,} bytes for {self._shown}; expected {expected:,}",
                hint="something on the way answers in its place (a login page, a proxy), or the mirror is damaged",
            )

    async def _write(self, answer: Answer, begin: int) -> None:
        expected = self.expected.size_bytes
        at = begin
        with self._opened(begin) as file:
            async for chunk in answer.response.content.iter_chunked(CHUNK_BYTES):
                at += len(chunk)
                if expected is not None and at > expected:
                    raise _Misfit(f"more than {expected:,} bytes arrived")
                try:
                    file.write(chunk)
                except OSError as error:
                    raise Unwritable(error, (expected or at) - at + len(chunk)) from error
                self.meter.at(self.path, at)

    def _opened(self, begin: int) -> FileIO:
        """Unbuffered: what was written is in the file when we are killed."""
        try:
            file = FileIO(self.path, "r+" if self.path.exists() else "w")
            file.truncate(begin)
            file.seek(begin)
        except OSError as error:
            raise Unwritable(error, 0) from error
        return file

    def _checked(self) -> str:
        found = sha256_of_file(self.path, self.meter.on_progress)
        if self.expected.sha256 and found != self.expected.sha256:
            raise _Misfit(f"its SHA-256 is {found}, not {self.expected.sha256}")
        if self.expected.git_sha1 and (other := git_sha1_of_file(self.path)) != self.expected.git_sha1:
            raise _Misfit(f"its git hash is {other}, not {self.expected.git_sha1}")
        return found

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def _drop(self) -> None:
        self.path.unlink(missing_ok=True)

    @property
    def _shown(self) -> str:
        """Without its query, which often signs the request."""
        return self.url.partition("?")[0]


def git_sha1_of_file(path: Path) -> str:
    """The name that git gives to a file of this content: SHA-1 over a head with its length, and the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()

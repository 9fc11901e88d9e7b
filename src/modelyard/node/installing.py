"""uv as a child process: its steps, how far it is, and its failures in words that a user can act on."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from modelyard.errors import EnvironmentFailed
from modelyard.packages import masked, uv_environ, uv_process
from modelyard.settings import PackageIndex

_POLL_S = 0.2
_IMPORT_TIMEOUT_S = 120.0
_SHOWN_LINES = 12
# No package's code runs at installation.
_WHEELS_ONLY = ("--only-binary", ":all:")

_INDEX_HINT = "check the network, the proxy, and the index settings (MODELYARD_INDEX_URL, MODELYARD_FIND_LINKS)"
# What uv 0.8 to 0.13 say; the first that matches decides.
_KNOWN = (
    (r"No space left on device", "the disk is full", "free some space, or set MODELYARD_STATE to another disk"),
    (
        r"Hash mismatch|[Hh]ash(es)? (do|does) not match",
        "a package from the index is not the one that the lock names; it was not installed",
        "a mirror may have rebuilt or cut it: try again, or name another index in MODELYARD_INDEX_URL",
    ),
    (
        r"invalid peer certificate|UnknownIssuer|certificate verify",
        "the package index has a certificate that is not trusted",
        "set MODELYARD_CA_FILE to the certificate authority of your proxy or mirror",
    ),
    (
        r"network was disabled|[Nn]etwork connectivity is disabled|offline mode",
        "packages are missing and the settings say offline",
        "unset MODELYARD_OFFLINE, or set MODELYARD_FIND_LINKS to a folder with the wheels",
    ),
    (
        r"status code 40[13]|401 Unauthorized|403 Forbidden",
        "the package index refuses access",
        "check the index's credentials (in its URL, or in a netrc file)",
    ),
    (
        r"[Ff]ailed to fetch|error sending request|dns error|[Cc]onnection refused|timed? ?out|tcp connect error",
        "the package index cannot be reached",
        _INDEX_HINT,
    ),
    (
        r"no wheels? (?:with a|are available|that match)|has no wheels|no usable wheels|no `?[a-z-]*`? ?wheel",
        "there is no wheel for this Python and machine",
        "use another Python version (3.11 to 3.13), or another engine on this machine",
    ),
    (
        r"there is no version of|was not found in the|no versions? of|not found in the provided package locations",
        "the index does not have a package at the version that is needed",
        "name an index that has it (MODELYARD_INDEX_URL, MODELYARD_EXTRA_INDEX_URL, MODELYARD_FIND_LINKS)",
    ),
    (r"Permission denied", "a folder cannot be written", "check the owner of the state directory and of uv's cache"),
)


def explain(output: str) -> EnvironmentFailed:
    """The error for what uv said last."""
    lines = [line for line in output.splitlines() if line.strip()][-_SHOWN_LINES:]
    said = "\n".join(["uv said:", *lines]) if lines else "uv said nothing"
    flat = " ".join(output.split())
    for pattern, message, hint in _KNOWN:
        if re.search(pattern, flat):
            return EnvironmentFailed(message, hint=f"{hint}\n{said}")
    return EnvironmentFailed("the package client failed", hint=said)


@dataclass(frozen=True, slots=True)
class Uv:
    """`locks` are descriptors that every uv process inherits: the locks last as long as the last of them. `cache` is
    where uv keeps what it fetched."""

    index: PackageIndex
    environ: Mapping[str, str]
    cache: Path
    locks: Sequence[int]

    def venv(self, root: Path) -> Path:
        """Makes an empty venv of the Python that runs us; returns its interpreter."""
        self._run(["venv", "--quiet", "--no-project", "--python", sys.executable, str(root)])
        return root / "bin" / "python"

    def offered(self, python: Path, pins: Iterable[str]) -> tuple[str, ...]:
        """`pins` (`name==version` each) as the indexes have them for this Python: with the local suffix of the build
        that uv would take. Downloads no package."""
        with tempfile.NamedTemporaryFile("w", suffix=".in", dir=python.parent) as file:
            file.write("".join(f"{pin}\n" for pin in pins))
            file.flush()
            options = ["--no-header", "--no-annotate", "--no-deps", *_WHEELS_ONLY, "--python", str(python)]
            said = self._run(["pip", "compile", "--quiet", *options, file.name])
        return tuple(line.partition(" ")[0] for line in said.splitlines() if "==" in line)

    def closure(self, wanted: Iterable[str], *, without: Iterable[str] = ()) -> str:
        """A lock of all that `wanted` leads to, but for the packages `without`, for the Python that runs us."""
        with tempfile.TemporaryDirectory() as folder:
            asked, excluded = Path(folder) / "asked.in", Path(folder) / "excluded.in"
            asked.write_text("".join(f"{one}\n" for one in wanted))
            excluded.write_text("".join(f"{one}\n" for one in without))
            shown = ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
            options = ["--generate-hashes", *shown, *_WHEELS_ONLY, "--python", sys.executable]
            return self._run(["pip", "compile", "--quiet", *options, "--excludes", str(excluded), str(asked)])

    def install(self, python: Path, lock: Path, on_bytes: Callable[[int], None]) -> None:
        """Exactly what the lock file names, from wheels whose hashes are in it. `on_bytes` is told how much has been
        unpacked, a few times a second."""
        watch = Unpacked(python.parent.parent, self.cache)
        options = ["--require-hashes", "--no-deps", *_WHEELS_ONLY, "--python", str(python)]
        # uv deletes its downloads once they are unpacked: progress that has been told is not taken back.
        most = 0

        def look() -> None:
            nonlocal most
            most = max(most, watch.size_bytes())
            on_bytes(most)

        self._run(["pip", "install", *options, "-r", str(lock)], look)

    def freeze(self, python: Path) -> tuple[str, ...]:
        """What is installed, `name==version` each, sorted."""
        return tuple(sorted(self._run(["pip", "freeze", "--quiet", "--python", str(python)]).split("\n")[:-1]))

    def forget(self, *names: str) -> None:
        """Removes packages from the cache, all where none is named: the next installation fetches them again."""
        self._run(["cache", "clean", "--quiet", *names])

    def prune(self) -> None:
        """Removes from the cache what nothing leads to: packages that were unpacked and never noted."""
        self._run(["cache", "prune", "--quiet"])

    def _run(self, arguments: list[str], on_poll: Callable[[], None] | None = None) -> str:
        environ = uv_environ(self.index, self.environ) | {"UV_CACHE_DIR": str(self.cache)}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
            with uv_process(
                arguments,
                environ,
                cwd=Path(),
                stderr=log.fileno(),
                stdout=out.fileno(),
                pass_fds=self.locks,
            ) as child:
                _wait(child, on_poll)
            if child.returncode != 0:
                raise explain(masked(_text(log) + _text(out), self.index, self.environ))
            return _text(out)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """uv reports nothing that a program can read, so we look at its work: it unpacks into its cache and links from
    there. Counted are files in the venv and what came into the cache since this began, each file once."""

    venv: Path
    cache: Path
    before: frozenset[Path] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "before", frozenset(self._entries()))

    def size_bytes(self) -> int:
        sizes: dict[tuple[int, int], int] = {}
        for folder in (self.venv, *(entry for entry in self._entries() if entry not in self.before)):
            sizes.update(_files(folder))
        return sum(sizes.values())

    def _entries(self) -> Iterator[Path]:
        for entry in _inside(self.cache):
            if entry.name.startswith(".tmp"):
                yield entry
            if entry.name.startswith("archive-v"):
                yield from _inside(entry)


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _files(folder: Path) -> Iterator[tuple[tuple[int, int], int]]:
    """(device and inode, bytes) of every file. uv works while we look: what vanishes is skipped, as `walk` does too."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(parent, name))
                yield (status.st_dev, status.st_ino), status.st_size


def import_module(python: Path, module: str, home: Path) -> None:
    """Imports `module` once, isolated and with an empty environment; it also leaves bytecode, which the engine itself
    does not write. Raises EnvironmentFailed with the last words."""
    command = [str(python), "-I", "-c", f"import {module}"]
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, timeout=_IMPORT_TIMEOUT_S, cwd=home)
    except subprocess.TimeoutExpired:
        raise EnvironmentFailed(
            f"importing {module} took longer than {_IMPORT_TIMEOUT_S:.0f} s", hint="look at the machine's load and disk"
        ) from None
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise EnvironmentFailed(
            f"{module} was installed and cannot be imported: {words[-1]}",
            hint="a system library is missing, or the wheels are not for this machine\n"
            + "\n".join(words[-_SHOWN_LINES:]),
        )


def _wait(child: subprocess.Popen[bytes], on_poll: Callable[[], None] | None) -> None:
    while True:
        try:
            child.wait(None if on_poll is None else _POLL_S)
            return
        except subprocess.TimeoutExpired:
            if on_poll is not None:
                on_poll()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")

"""A page of the documentation as something that can be run: every command typed at a terminal, every output compared.

What a page holds:

* ```` ```console ````: a session. `$ ` begins a command; the lines after it are what the terminal shows, and those that
  begin with `> ` are also typed, at the prompt of the command. `...` stands for any lines, `…` for any text.
* ```` ```yaml ```` whose first line is `# NAME`: a file of that name, written before what follows.

Times, sizes, hashes, keys and rates differ from run to run: `normal` makes them alike on both sides."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

PROMPT, TYPED = "$ ", "> "
ENDS_WITHIN_S = 300.0
ROWS, COLUMNS = 50, 120
_FENCE = re.compile(r"^```(\w*)\s*$")
_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])")

# In this order; each is replaced by its name on both sides.
_VARIES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\bm[ya]_[\w-]+…?", "KEY"),
        (r"\b\d\d:\d\d:\d\d\b", "CLOCK"),
        (r"\b[0-9a-f]{12,64}\b(?!-)", "HASH"),
        (r"\b\d+(?:\.\d+)? (?:per second|tok/s)", "RATE"),
        (r"\b\d+(?:\.\d+)? (?:B|KiB|MiB|GiB)\b", "SIZE"),
        (r"\b\d+(?:\.\d+)? (?:s|ms|min|h|d|seconds?|minutes?|days?)\b", "TIME"),
        (r"\b\d+ cores?\b", "CORES"),
        (r"\b\d+%", "SHARE"),
        (r"[ \t]+", " "),
    )
)


@dataclass(frozen=True)
class File:
    """A file that the page shows whole."""

    line: int
    name: str
    text: str


@dataclass(frozen=True)
class Typed:
    """A command, and what the terminal shows after it."""

    line: int
    command: str
    shown: tuple[str, ...]

    @property
    def answers(self) -> list[str]:
        """What is typed while it runs."""
        return [line.removeprefix(TYPED) for line in self.shown if line.startswith(TYPED)]

    @property
    def fails(self) -> bool:
        return any(line.startswith("error:") for line in self.shown)


def steps(text: str) -> Iterator[File | Typed]:
    """Files and commands of a page, in its order. Raises ValueError for a block that would not be run."""
    for line, kind, body in _blocks(text.splitlines()):
        if kind == "console":
            yield from _session(line, body)
        elif kind == "yaml" and body and (name := re.fullmatch(r"# ([\w.-]+)", body[0])):
            yield File(line, name[1], "\n".join(body) + "\n")
        else:
            raise ValueError(f"line {line}: a block of {kind or 'nothing'!r} that nobody runs")


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, str, list[str]]]:
    body: list[str] | None = None
    begun, kind = 0, ""
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if body is None and fence:
            begun, kind, body = number, fence[1], []
        elif body is not None and line.strip() == "```":
            yield begun, kind, body
            body = None
        elif body is not None:
            body.append(line)
    if body is not None:
        raise ValueError(f"line {begun}: a block without an end")


def _session(begun: int, body: Sequence[str]) -> Iterator[Typed]:
    current: tuple[int, str, list[str]] | None = None
    for number, line in enumerate(body, begun + 1):
        if line.startswith(PROMPT):
            if current:
                yield _typed(*current)
            current = (number, line.removeprefix(PROMPT), [])
        elif current is None:
            raise ValueError(f"line {number}: a session begins with a command")
        elif current[1].endswith("\\") and not current[2]:
            current = (current[0], f"{current[1]}\n{line}", [])
        else:
            current[2].append(line)
    if current:
        yield _typed(*current)


def _typed(line: int, command: str, shown: list[str]) -> Typed:
    while shown and not shown[-1]:
        shown.pop()
    return Typed(line, command, tuple(shown))


def normal(line: str) -> str:
    """`line` with everything that differs from run to run made alike."""
    for pattern, name in _VARIES:
        line = pattern.sub(name, line)
    return line.strip()


def differs(expected: Sequence[str], found: Sequence[str]) -> str:
    """Where the two part, in words; empty where they agree."""
    wanted = [normal(line) for line in expected]
    got = [normal(line) for line in found if line.strip()]
    wanted = [line for line in wanted if line]
    at = 0
    for number, line in enumerate(wanted):
        if line == "...":
            following = next((one for one in wanted[number + 1 :] if one != "..."), None)
            if following is None:
                return ""
            while at < len(got) and not _alike(following, got[at]):
                at += 1
            continue
        if at == len(got):
            return f"wanted {line!r}, and there was no more"
        if not _alike(line, got[at]):
            return f"wanted {line!r}, got {got[at]!r}"
        at += 1
    return f"not expected: {got[at]!r}" if at < len(got) else ""


def _alike(wanted: str, got: str) -> bool:
    pattern = ".+".join(re.escape(part) for part in wanted.split("…"))
    return re.fullmatch(pattern, got) is not None


class Terminal:
    """One person at one terminal: a folder, variables that last, and commands that think somebody looks."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self._environ = {**environ, "TERM": "dumb", "COLUMNS": str(COLUMNS)}
        self._kept = folder / ".variables"

    def run(self, step: Typed) -> tuple[int, list[str]]:
        """Exit code and what the terminal showed, what was typed included."""
        before, after = f"[ ! -f {self._kept} ] || . {self._kept}", f"code=$?\nexport -p >{self._kept}\nexit $code"
        script = f"set -a\n{before}\n{step.command}\n{after}"
        ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        child = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-c", script],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=self.folder,
            env=self._environ,
            start_new_session=True,
        )
        os.close(theirs)
        try:
            shown = self._converse(ours, step.answers)
            return child.wait(ENDS_WITHIN_S), shown.splitlines()
        finally:
            os.close(ours)
            if child.poll() is None:
                child.kill()
                child.wait()

    def _converse(self, terminal: int, answers: list[str]) -> str:
        """Until the command closes its terminal; at each prompt the next answer is typed."""
        shown, deadline = "", time.monotonic() + ENDS_WITHIN_S
        raw = b""
        said = select.poll()
        said.register(terminal, select.POLLIN)
        while True:
            ready = said.poll(max(0.0, deadline - time.monotonic()) * 1e3)
            assert ready, f"does not end; the terminal shows:\n{shown}"
            try:
                piece = os.read(terminal, 65536)
            except OSError:
                piece = b""
            if not piece:
                return shown
            raw += piece
            shown = _ESCAPE.sub("", raw.decode("utf-8", "replace")).replace("\r", "")
            if answers and shown.rpartition("\n")[2] == TYPED:
                os.write(terminal, answers.pop(0).encode() + b"\n")

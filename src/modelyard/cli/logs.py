"""`modelyard logs`: what engines and our own processes said."""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from modelyard.cli.admin import listening, state_directory
from modelyard.cli.events import EventKind, show_events
from modelyard.cli.options import Json
from modelyard.cli.output import print_json, say
from modelyard.cli.visible import log_line
from modelyard.control import wanted as desired
from modelyard.errors import UsageError
from modelyard.state import StateDirectory

LOOK_EVERY_S = 0.2
OURS = ("yard", "control", "gateway")


def logs(
    name: Annotated[str | None, typer.Argument(help="A deployment or a replica; all deployments if left out.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    yard: Annotated[bool, typer.Option("--yard", help="The parent process's log.")] = False,
    control: Annotated[bool, typer.Option("--control", help="Control's log.")] = False,
    gateway: Annotated[bool, typer.Option("--gateway", help="The gateway's log.")] = False,
    events: Annotated[
        EventKind | None, typer.Option("--events", help="Events of the journal instead, or the audit log.")
    ] = None,
    json: Json = False,
) -> None:
    """Show the last lines of logs, or the last events."""
    state = state_directory()
    if events is not None:
        if name or yard or control or gateway:
            raise UsageError("events are of the whole installation", hint=f"modelyard logs --events {events}")
        show_events(state, events, lines, follow=follow, as_json=json)
        return
    ours = [role for role, asked in zip(OURS, (yard, control, gateway), strict=True) if asked]
    files = [state.logs / f"{role}.log" for role in ours] or _engine_logs(state, name)
    if json:
        print_json({file.name: _last(file, lines) for file in files})
        return
    for file in files:
        prefix = f"{file.stem} | " if len(files) > 1 else ""
        for line in _last(file, lines):
            say(prefix + log_line(line))
    if follow:
        _follow(state, files)


def _engine_logs(state: StateDirectory, name: str | None) -> list[Path]:
    known = {file.stem: file for file in sorted(state.logs.glob("*.log")) if file.stem not in (*OURS, "shims")}
    if name is None:
        chosen = list(known.values())
    elif name in known:
        chosen = [known[name]]
    elif (wanted := desired.load(state, name)) is not None:
        chosen = [known[plan.name] for plan in wanted.plan.replicas if plan.name in known]
    else:
        raise UsageError(
            f"there is no log of {name!r}", hint=f"logs: {', '.join([*known, '--yard', '--control', '--gateway'])}"
        )
    if not chosen:
        raise UsageError("no engine has said anything yet", hint="modelyard logs --control")
    return chosen


def _last(file: Path, count: int) -> list[str]:
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            return [line.rstrip("\n") for line in deque(opened, maxlen=count)]
    except FileNotFoundError:
        return []


def _follow(state: StateDirectory, files: list[Path]) -> None:
    """Until interrupted, or until nothing is served any more. A rotated file is read from its beginning."""
    at = {file: _identity(file) for file in files}
    while True:
        for file in files:
            inode, offset = at[file]
            now_inode, size = _identity(file)
            if now_inode != inode or size < offset:
                offset = 0
            if size > offset:
                with file.open("rb") as opened:
                    opened.seek(offset)
                    data = opened.read(size - offset)
                say("\n".join(log_line(line) for line in data.decode("utf-8", "replace").rstrip("\n").split("\n")))
            at[file] = (now_inode, size)
        if listening(state) is None:
            return
        time.sleep(LOOK_EVERY_S)


def _identity(file: Path) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except FileNotFoundError:
        return (0, 0)
    return status.st_ino, status.st_size

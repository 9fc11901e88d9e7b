"""`modelyard debug`: see what clients send and are sent, for a time, for a reason, noted."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from modelyard.cli.admin import Admin, state_directory
from modelyard.cli.durations import seconds
from modelyard.cli.health import ago
from modelyard.cli.options import Json
from modelyard.cli.output import print_json, say
from modelyard.control.debugging import KEPT_S, LONGEST_S
from modelyard.control.views import DebugWindow, DeploymentView
from modelyard.errors import UsageError
from modelyard.records.base import Record

app = typer.Typer(help="Write down what clients send and are sent: for a time, audited.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A deployment.")]


class DebugFile(Record, kw_only=True):
    """What a window left. `removed_at`: when control removes it, unless more is written to it."""

    path: str
    bytes: int
    removed_at: float


class DebugState(Record, kw_only=True):
    """What `debug list --json` prints."""

    open: tuple[DebugWindow, ...]
    files: tuple[DebugFile, ...]


@app.command("open")
def open_window(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why: it stands in the audit log.")],
    for_: Annotated[str, typer.Option("--for", help="How long, such as 10m; at most a day.")] = "10m",
    json: Json = False,
) -> None:
    """Begin to write prompts and answers of a deployment into files that only you can read.

    It ends by itself. The files are removed a day after their last request."""
    length_s = seconds(for_)
    if not 0 < length_s <= LONGEST_S:
        raise UsageError("a window is open for a day at most", hint="--for 10m")
    if not reason.strip():
        raise UsageError("say why: it stands in the audit log", hint='--reason "ticket 4711: garbled answers"')
    state = state_directory()
    window = Admin(state).post(f"/deployments/{name}/debug", DebugWindow, {"for_s": length_s, "reason": reason})
    if json:
        print_json(window)
        return
    until = time.strftime("%H:%M:%S", time.localtime(window.until))
    say(f"prompts and answers of {name} are written to {state.debug} until {until}")


@app.command()
def close(name: Name, json: Json = False) -> None:
    """End a window before its time; the files stay until they are removed."""
    Admin(state_directory()).delete(f"/deployments/{name}/debug", dict[str, str])
    if json:
        print_json({"name": name})
    else:
        say(f"nothing more of {name} is written")


@app.command("list")
def list_windows(json: Json = False) -> None:
    """Which windows are open, and what the files are."""
    state = state_directory()
    views = Admin(state).get("/deployments", list[DeploymentView])
    windows = tuple(DebugWindow(deployment=view.name, until=view.debug_until) for view in views if view.debug_until)
    files = tuple(
        DebugFile(path=str(path), bytes=path.stat().st_size, removed_at=path.stat().st_mtime + KEPT_S)
        for path in sorted(state.debug.glob("*.ndjson"))
    )
    if json:
        print_json(DebugState(open=windows, files=files))
        return
    now = time.time()
    for window in windows:
        say(f"{window.deployment}: open for another {ago(window.until - now)}")
    for file in files:
        say(f"{file.path}  {file.bytes:,} bytes  removed in {ago(max(0.0, file.removed_at - now))}")
    if not windows and not files:
        say("no window is open, and none left anything")

"""Is the state directory fit to serve from, and is the address free: looked at, nothing made."""

from __future__ import annotations

import os
from collections.abc import Iterator

from modelyard.cli.admin import listening
from modelyard.errors import AddressInUse
from modelyard.gateway.listen import listening_socket
from modelyard.records.finding import Finding
from modelyard.spec.wanted import Gateway
from modelyard.state import LAYOUT_VERSION, StateDirectory, is_locked


def judge_state(state: StateDirectory) -> tuple[Finding, ...]:
    """A folder that is not there yet is judged by the one that it would be made in."""
    blocked = (*_writable(state), *_layout(state))
    return blocked or (*_privacy(state), *_sockets(state), *_left_behind(state))


def judge_address(state: StateDirectory, gateway: Gateway) -> tuple[Finding, ...]:
    """Whether `up` can listen where it does unless told otherwise; our own yard may have the address already."""
    where = listening(state) if state.yard.exists() else None
    if where is not None:
        return (
            Finding(
                severity="note", check="address", what=f"this state directory is being served at {where.url}", why=""
            ),
        )
    try:
        listening_socket(gateway.host, gateway.port).close()
    except AddressInUse as error:
        return (
            Finding(
                severity="error",
                check="address",
                what=error.message,
                why="`up` listens there unless it is told otherwise",
                remedy=f"modelyard up --port 0 takes a free one; {error.hint}",
            ),
        )
    return ()


def _writable(state: StateDirectory) -> Iterator[Finding]:
    folder = state.root
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return
    yield Finding(
        severity="error",
        check="state directory",
        what=f"{folder} " + ("may not be written by this user" if folder.is_dir() else "is not a folder"),
        why=f"models, environments, keys and evidence are kept in {state.root}",
        remedy="correct its owner, or name another folder in MODELYARD_STATE",
    )


def _layout(state: StateDirectory) -> Iterator[Finding]:
    try:
        found = state.layout.read_text().strip()
    except OSError:
        return
    if found != str(LAYOUT_VERSION):
        yield Finding(
            severity="error",
            check="state directory",
            what=f"{state.root} has layout {found}, this version writes layout {LAYOUT_VERSION}",
            why="another version of Modelyard made it",
            remedy="upgrade Modelyard, or name another folder in MODELYARD_STATE",
        )


def _privacy(state: StateDirectory) -> Iterator[Finding]:
    if not state.root.exists():
        return
    status = state.root.stat()
    if status.st_uid != os.getuid():
        yield Finding(
            severity="warning",
            check="state directory",
            what=f"{state.root} belongs to another user",
            why="what that user puts there (environments, keys) is run and trusted as ours",
            remedy="name a folder of your own in MODELYARD_STATE",
        )
    if status.st_mode & 0o077:
        yield Finding(
            severity="warning",
            check="state directory",
            what=f"other users may look into {state.root}",
            why="it holds the admin API's key and the logs of engines",
            remedy=f"chmod 700 {state.root}",
        )


def _sockets(state: StateDirectory) -> Iterator[Finding]:
    if state.sockets.parent != state.root:
        yield Finding(
            severity="note",
            check="sockets",
            what=f"the path of the state directory is long: sockets lie in {state.sockets}",
            why="a unix socket's path has room for 108 bytes; who empties temporary folders must leave this one alone",
            remedy="name a shorter folder in MODELYARD_STATE",
        )
    if state.sockets.exists() and state.sockets.stat().st_uid != os.getuid():
        yield Finding(
            severity="error",
            check="sockets",
            what=f"{state.sockets} belongs to another user",
            why="engines listen there",
            remedy="remove it as that user, or name a shorter folder in MODELYARD_STATE",
        )


def _left_behind(state: StateDirectory) -> Iterator[Finding]:
    """What a yard leaves that was killed; the next one takes it over."""
    running = state.yard_lock.exists() and is_locked(state.yard_lock)
    left = [one.name for one in state.launches.glob("*") if one.is_file()] if state.launches.is_dir() else []
    if running or not (state.yard.exists() or left):
        return
    yield Finding(
        severity="note",
        check="state directory",
        what="the last yard here did not end by itself"
        + (f"; {len(left)} of its launches {'are' if len(left) > 1 else 'is'} on record" if left else ""),
        why="engines end with the lease, a few seconds after their yard; the next `up` clears what is left",
    )

"""`modelyard down`: stop serving."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from typing import Annotated

import typer

from modelyard.cli.admin import listening, signal_yard, state_directory
from modelyard.cli.options import Json
from modelyard.cli.output import print_json, say
from modelyard.control import wanted as desired
from modelyard.errors import ModelyardError
from modelyard.state import StateDirectory, is_locked, locked

STOP_WITHIN_S = 100.0
LOOK_EVERY_S = 0.05


def down(
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Also remove engines, models, keys, evidence and journals."),
    ] = False,
    json: Json = False,
) -> None:
    """Stop serving: running requests finish, engines end, deployments are forgotten.

    Models, engines' environments, keys, evidence and journals stay for the next `up`, unless --purge.
    """
    state = state_directory()
    was_running = listening(state) is not None
    if was_running:
        signal_yard(state, signal.SIGTERM)
        _wait(state)
    # Nobody else may begin to serve from here meanwhile.
    with locked(state.yard_lock, holding="serving from this state directory"):
        for name in desired.names(state):
            desired.remove(state, name)
        if purge:
            _purge(state)
    if json:
        print_json({"was_running": was_running, "purged": purge})
    else:
        say(("stopped" if was_running else "nothing was running") + (f"; {state.root} is emptied" if purge else ""))


def _wait(state: StateDirectory) -> None:
    deadline = time.monotonic() + STOP_WITHIN_S
    while is_locked(state.yard_lock):
        if time.monotonic() > deadline:
            raise ModelyardError("the yard does not end", hint="modelyard logs --yard")
        time.sleep(LOOK_EVERY_S)


def _purge(state: StateDirectory) -> None:
    """Only what is ours by name: the state directory may be a folder that holds other things too."""
    for folder in (
        state.store, state.wheels, state.environments, state.package_cache.parent, state.deployments, state.evidence,
        state.journal, state.locks, state.conformance, state.selftest, state.debug,
        state.logs, state.launches, state.sockets,
    ):  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
    for file in (
        state.spending, state.audit, state.exported,
        state.topology, state.keys, state.admin_key, state.yard, state.gateways, state.lease, state.rates,
        state.rates_lock, state.yard_lock, state.layout,
    ):  # fmt: skip
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        state.root.rmdir()

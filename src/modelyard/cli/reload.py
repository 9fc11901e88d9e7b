"""`modelyard reload`: the gateway starts anew, and no request fails for it."""

from __future__ import annotations

import signal
import time

from modelyard.cli.admin import gateways, running, signal_yard, state_directory
from modelyard.cli.options import Json
from modelyard.cli.output import print_json, say
from modelyard.errors import ModelyardError
from modelyard.records.listening import Gateways
from modelyard.state import StateDirectory

DONE_WITHIN_S = 60.0
LOOK_EVERY_S = 0.05


def reload(json: Json = False) -> None:
    """Replace the gateway's processes by new ones, as the program and its certificates are on disk now.

    The new ones serve before the old ones step aside; those finish their answers. If the new ones do not come up, the
    old ones serve on and this command fails. Topology and keys need no reload: they are followed always.
    """
    state = state_directory()
    running(state)
    before = gateways(state)
    signal_yard(state, signal.SIGHUP)
    seen = _finished(state, before.reloads if before is not None else 0)
    if seen.failure:
        raise ModelyardError(f"nothing was changed: {seen.failure}", hint="modelyard logs --gateway")
    if json:
        print_json(seen)
    else:
        pids = ", ".join(str(one.pid) for one in seen.serving)
        say(f"reloaded: the gateway runs as {pids}" + ("; the one before finishes its answers" if seen.leaving else ""))


def _finished(state: StateDirectory, before: int) -> Gateways:
    """What yard says once another reload has come to its end."""
    deadline = time.monotonic() + DONE_WITHIN_S
    while time.monotonic() < deadline:
        running(state)
        seen = gateways(state)
        if seen is not None and seen.reloads > before:
            return seen
        time.sleep(LOOK_EVERY_S)
    raise ModelyardError("the reload does not come to an end", hint="modelyard logs --yard")

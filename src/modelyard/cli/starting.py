"""Starting a yard from the command line: a process of its own, which says in one line whether it listens."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import msgspec

from modelyard import settings
from modelyard.errors import AddressInUse, ModelyardError
from modelyard.records.listening import Listening, StartFailed, StartOutcome
from modelyard.spec.deployment import Gateway
from modelyard.state import StateDirectory

_outcome = msgspec.json.Decoder[StartOutcome](StartOutcome)


@dataclass(slots=True)
class StartedYard:
    """`ends_with_us` is the writing end of a pipe: the yard stops when it closes; None for a detached one."""

    listening: Listening
    process: subprocess.Popen[bytes]
    ends_with_us: int | None


def start_yard(state: StateDirectory, gateway: Gateway, *, insecure: bool, detached: bool) -> StartedYard:
    """Raises what the yard could not do: AddressInUse, StateLocked, ..."""
    outcome_read, outcome_write = os.pipe()
    argv = [sys.executable, "-I", "-m", "modelyard.yard", "--outcome-fd", str(outcome_write)]
    argv += ["--host", gateway.host, "--port", str(gateway.port)]
    if gateway.tls is not None:
        argv += ["--tls-cert", gateway.tls.cert, "--tls-key", gateway.tls.key]
    if insecure:
        argv.append("--insecure-listen")
    watch_read, watch_write = (None, None) if detached else os.pipe()
    inherited = [outcome_write]
    if watch_read is not None:
        argv += ["--watch-fd", str(watch_read)]
        inherited.append(watch_read)
    with (state.logs / "yard.log").open("ab") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=inherited,
            # Ctrl-C is the command's to hear; it then asks the yard to stop.
            start_new_session=True,
            env={**settings.load().environ, "MODELYARD_STATE": str(state.root)},
        )
    for descriptor in inherited:
        os.close(descriptor)
    with os.fdopen(outcome_read, "rb") as pipe:
        line = pipe.readline()
    if not line:
        raise ModelyardError("the yard ended before it listened", hint=f"its log: {state.logs / 'yard.log'}")
    outcome = _outcome.decode(line)
    if isinstance(outcome, StartFailed):
        process.wait()
        raise _failure(outcome)
    return StartedYard(outcome, process, watch_write)


def _failure(outcome: StartFailed) -> ModelyardError:
    for kind in (AddressInUse, *ModelyardError.__subclasses__()):
        if kind.exit_code == outcome.exit_code:
            return kind(outcome.message, hint=outcome.hint)
    return ModelyardError(outcome.message, hint=outcome.hint)

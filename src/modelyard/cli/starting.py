"""Starting a yard from the command line: a process of its own, which says in one line whether it listens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import msgspec

from modelyard import settings
from modelyard.errors import AddressInUse, ModelyardError
from modelyard.records.listening import Listening, StartFailed, StartOutcome
from modelyard.spec.deployment import Gateway
from modelyard.state import StateDirectory

_outcome = msgspec.json.Decoder[StartOutcome](StartOutcome)


STOP_WITHIN_S = 100.0


@dataclass(slots=True)
class StartedYard:
    """A yard that this command started. It stops with this command, however that ends, until it is let go."""

    listening: Listening
    process: subprocess.Popen[bytes]
    leash: int

    def let_go(self) -> None:
        """Let it serve on when this command is gone."""
        os.write(self.leash, b".")
        os.close(self.leash)

    def stop(self) -> None:
        """Running requests finish, then the engines end; Ctrl-C meanwhile cuts them short. Raises ModelyardError."""
        deadline = time.monotonic() + STOP_WITHIN_S
        self.process.send_signal(signal.SIGTERM)
        while True:
            try:
                self.process.wait(max(0.0, deadline - time.monotonic()))
                break
            except KeyboardInterrupt:
                self.process.send_signal(signal.SIGINT)
            except subprocess.TimeoutExpired:
                raise ModelyardError("the yard does not end", hint="modelyard logs --yard") from None
        os.close(self.leash)


def start_yard(state: StateDirectory, gateway: Gateway, *, insecure: bool) -> StartedYard:
    """Raises what the yard could not do: AddressInUse, StateLocked, ..."""
    outcome_read, outcome_write = os.pipe()
    watch_read, leash = os.pipe()
    argv = [sys.executable, "-I", "-m", "modelyard.yard", "--outcome-fd", str(outcome_write)]
    argv += ["--watch-fd", str(watch_read), "--host", gateway.host, "--port", str(gateway.port)]
    argv += ["--workers", str(gateway.workers)]
    if gateway.tls is not None:
        argv += ["--tls-cert", gateway.tls.cert, "--tls-key", gateway.tls.key]
        if gateway.tls.client_ca is not None:
            argv += ["--tls-client-ca", gateway.tls.client_ca]
    argv += ["--connections-per-address", str(gateway.connections_per_address)]
    if insecure:
        argv.append("--insecure-listen")
    inherited = (outcome_write, watch_read)
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
        os.close(leash)
        raise ModelyardError("the yard ended before it listened", hint="modelyard logs --yard")
    outcome = _outcome.decode(line)
    if isinstance(outcome, StartFailed):
        os.close(leash)
        process.wait()
        raise _failure(outcome)
    return StartedYard(outcome, process, leash)


def _failure(outcome: StartFailed) -> ModelyardError:
    for kind in (AddressInUse, *ModelyardError.__subclasses__()):
        if kind.exit_code == outcome.exit_code:
            return kind(outcome.message, hint=outcome.hint)
    return ModelyardError(outcome.message, hint=outcome.hint)

"""`python -m modelyard.yard`: the parent process, as the command line or a service manager starts it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from modelyard import settings
from modelyard.clock import SYSTEM
from modelyard.errors import ModelyardError
from modelyard.gateway.limits import WIRE
from modelyard.gateway.listen import check_bind, tls_of
from modelyard.records.base import encode
from modelyard.records.listening import Listening, StartFailed, StartOutcome
from modelyard.state import open_state
from modelyard.yard.parent import Yard, YardSettings

TELEMETRY = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
)
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", *TELEMETRY)


def main() -> None:
    parser = argparse.ArgumentParser(prog="modelyard-yard", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="where clients connect; beyond loopback TLS is demanded")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--tls-client-ca", type=Path)
    parser.add_argument("--connections-per-address", type=int, default=WIRE.connections_per_address)
    parser.add_argument(
        "--insecure-listen", action="store_true", help="beyond loopback without TLS: something else guards it"
    )
    parser.add_argument("--workers", type=int, default=1, help="gateway processes on the one socket")
    parser.add_argument("--outcome-fd", type=int, help="where to say in one line whether it listens")
    parser.add_argument("--watch-fd", type=int, help="stop when this pipe ends; a byte from it ends the watch")
    chosen = parser.parse_args()
    try:
        _run(chosen)
    except ModelyardError as error:
        _tell(chosen.outcome_fd, StartFailed(message=error.message, hint=error.hint, exit_code=error.exit_code))
        sys.exit(error.exit_code)


def _run(chosen: argparse.Namespace) -> None:
    ours = settings.load()
    tls = tls_of(chosen.tls_cert, chosen.tls_key, chosen.tls_client_ca)
    if tls is not None:
        tls.context()
    # Every client needs a key always: what may be missing beyond loopback is TLS.
    check_bind(chosen.host, has_key=True, has_tls=tls is not None, insecure=chosen.insecure_listen)
    yard_settings = YardSettings(
        host=chosen.host,
        port=chosen.port,
        tls=tls,
        lease_s=ours.lease_s,
        children_environ={name: ours.environ[name] for name in INHERITED if name in ours.environ},
        watched=chosen.watch_fd,
        workers=max(1, chosen.workers),
        connections_per_address=chosen.connections_per_address,
    )
    state = open_state(ours.state_dir)
    Yard(state, yard_settings, SYSTEM).run(lambda listening: _tell(chosen.outcome_fd, listening))


def _tell(descriptor: int | None, outcome: StartOutcome) -> None:
    if descriptor is None:
        text = f"listening on {outcome.url}" if isinstance(outcome, Listening) else f"error: {outcome.message}"
        print(text, flush=True)
        return
    os.write(descriptor, encode(outcome) + b"\n")
    os.close(descriptor)


if __name__ == "__main__":
    main()

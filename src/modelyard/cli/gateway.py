"""`modelyard gateway`: the data plane alone."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import typer

from modelyard import settings
from modelyard.cli.credential import secret_of
from modelyard.cli.output import say
from modelyard.errors import UsageError


def gateway(
    upstream: Annotated[list[str], typer.Option(help="An engine: http://HOST:PORT or unix:/PATH. Repeatable.")],
    model: Annotated[str, typer.Option(help="The public name that clients ask for.")],
    port: Annotated[int, typer.Option(help="Where to listen.")] = 8080,
    host: Annotated[str, typer.Option(help="Beyond loopback a key and TLS are demanded.")] = "127.0.0.1",
    key: Annotated[list[str] | None, typer.Option(help="A key that clients may use. Repeatable.")] = None,
    engine_model: Annotated[str, typer.Option(help="The name the engine answers to, if it is another.")] = "",
    endpoint: Annotated[
        list[str] | None,
        typer.Option(help="What the engines have: /v1/embeddings. Repeatable; without it chat and completions."),
    ] = None,
    max_in_flight: Annotated[int, typer.Option(help="Requests at once per engine; more wait in the queue.")] = 256,
    upstream_key: Annotated[
        str | None, typer.Option(help="The key that the engines ask of us, by reference: env:NAME or file:/path.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Where the journal goes; without it none is kept.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Let in only clients with a certificate of these authorities (PEM).")
    ] = None,
    connections_per_address: Annotated[
        int, typer.Option(min=1, help="Connections that one address may hold; this machine's own are not counted.")
    ] = 1024,
    insecure_listen: Annotated[bool, typer.Option(help="Listen beyond loopback without key or TLS.")] = False,
) -> None:
    """Run the gateway alone, in front of engines that something else keeps running.

    An endpoint that they have passes; messages, responses and count_tokens are made of others where they lack them; the
    rest is answered with 501.

    Example: modelyard gateway --upstream http://127.0.0.1:8000 --model my-model --port 8080 --key secret
    """
    from modelyard.gateway import serve, standalone
    from modelyard.gateway.limits import WIRE
    from modelyard.gateway.listen import check_bind, listening_socket, tls_of
    from modelyard.gateway.routes import INFERENCE
    from modelyard.state import open_state

    for address in upstream:
        if not address.startswith(("http://", "unix:/")):
            raise UsageError(f"{address!r} is not an engine's address", hint="http://HOST:PORT or unix:/PATH")
    if not key:
        raise UsageError("no key", hint="give --key; a gateway that anyone may use is not started")
    unknown = sorted(set(endpoint or ()) - INFERENCE)
    if unknown:
        raise UsageError(f"there is no endpoint {unknown[0]!r} here", hint=f"one of {', '.join(sorted(INFERENCE))}")
    tls = tls_of(tls_cert, tls_key, tls_client_ca)
    check_bind(host, has_key=bool(key), has_tls=tls is not None, insecure=insecure_listen)
    bearer = secret_of(upstream_key, settings.load().environ) if upstream_key is not None else ""
    has = endpoint or standalone.USUAL
    topology = standalone.fixed_topology(model, engine_model or model, upstream, max_in_flight, has)
    sock = listening_socket(host, port)
    port = sock.getsockname()[1]
    journal = open_state(state.absolute()).journal if state is not None else None
    url = f"{'https' if tls else 'http'}://{host}:{port}/v1"
    serve.run(
        sock,
        journal,
        functools.partial(standalone.prepare, topology, key, bearer),
        tls=tls,
        wire=dataclasses.replace(WIRE, connections_per_address=connections_per_address),
        on_listening=lambda: say(f"listening on {url} for {model!r}"),
    )

"""`modelyard up`: the main job, from a model to a proved endpoint."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from modelyard import settings as settings_module
from modelyard.cli import following
from modelyard.cli.admin import Admin, listening, state_directory
from modelyard.cli.keys import MadeKey
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, say
from modelyard.cli.prepare import prepare
from modelyard.cli.seven_steps import SevenSteps
from modelyard.cli.starting import StartedYard, start_yard
from modelyard.control import wanted as desired
from modelyard.control.key_log import ListedKey
from modelyard.errors import EngineFailed, ModelyardError, UsageError
from modelyard.records.base import Record
from modelyard.records.listening import Listening
from modelyard.spec.deployment import Deployment, DeploymentFile, Gateway, Tls, default_deployment, load_file
from modelyard.state import StateDirectory

STOP_WITHIN_S = 100.0


class Serving(Record, tag_field="event", tag="serving", kw_only=True):
    """The last line of `up --json`. `key` is shown this once, and only where one was made."""

    url: str
    deployments: tuple[str, ...]
    key: str | None
    key_id: str | None


def up(
    what: Annotated[
        str, typer.Argument(help="A deployment file (.yaml), a name of the catalogue, or a path.")
    ] = "smollm2",
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it serves; `modelyard down` ends it.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Public name, in place of the model's.")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine, in place of the planned one.")] = None,
    host: Annotated[str | None, typer.Option(help="Where clients connect; beyond loopback TLS is demanded.")] = None,
    port: Annotated[int | None, typer.Option(help="Port for clients; 0 takes a free one.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Serve HTTPS with this certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    insecure_listen: Annotated[
        bool, typer.Option(help="Listen beyond loopback without TLS: something else guards it.")
    ] = False,
    json: Json = False,
) -> None:
    """Serve a model: prepare, plan, start, prove, go live, and keep it there.

    Without arguments it serves the packaged model. With a yard running already, the deployments are added to it.
    Ctrl-C stops what this command started.
    """
    file = _wanted_file(what, name, engine, _gateway(host, port, tls_cert, tls_key))
    state, settings = state_directory(), settings_module.load()
    found = listening(state)
    started = None if found is not None else _start(state, file, insecure=insecure_listen, detached=detach)
    where = started.listening if started is not None else found
    assert where is not None
    with contextlib.ExitStack() as cleaning:
        if started is not None:
            cleaning.callback(stop, started, quietly=json)
        admin = Admin(state)
        for deployment in file.deployments:
            _bring_up(deployment, state, settings, admin, where, json)
        _tell_how_to_call(admin, where, file.deployments, json)
        if detach or started is None:
            cleaning.pop_all()
            return
        _stay(admin, file.deployments[0].name, started, json)


def _wanted_file(what: str, name: str | None, engine: str | None, gateway: Gateway) -> DeploymentFile:
    if what.endswith((".yaml", ".yml")):
        file = load_file(Path(what))
        plain = msgspec.structs.asdict(Gateway())
        given = {key: value for key, value in msgspec.structs.asdict(gateway).items() if value != plain[key]}
        file = msgspec.structs.replace(file, gateway=msgspec.structs.replace(file.gateway, **given))
    else:
        file = DeploymentFile(deployments=(default_deployment(what),), gateway=gateway)
    if name is None and engine is None:
        return file
    first, *others = file.deployments
    if others:
        raise UsageError("--name and --engine are for one deployment", hint="write them into the file")
    changed = msgspec.structs.replace(first, name=name or first.name, engine=engine or first.engine)
    return msgspec.structs.replace(file, deployments=(changed,))


def _gateway(host: str | None, port: int | None, cert: Path | None, key: Path | None) -> Gateway:
    if (cert is None) != (key is None):
        raise UsageError("TLS needs both files", hint="give --tls-cert and --tls-key")
    tls = Tls(cert=str(cert.absolute()), key=str(key.absolute())) if cert is not None and key is not None else None
    default = Gateway()
    return Gateway(host=host or default.host, port=default.port if port is None else port, tls=tls)


def _start(state: StateDirectory, file: DeploymentFile, *, insecure: bool, detached: bool) -> StartedYard:
    """A fresh yard serves what this command names, and nothing from before."""
    for name in desired.names(state):
        desired.remove(state, name)
    return start_yard(state, file.gateway, insecure=insecure, detached=detached)


def _bring_up(
    deployment: Deployment,
    state: StateDirectory,
    settings: settings_module.Settings,
    admin: Admin,
    where: Listening,
    as_json: bool,
) -> None:
    steps = SevenSteps(deployment.name, OUT, as_json)
    if not as_json:
        say(f"{deployment.name}: {deployment.model}")
    wanted = prepare(deployment, state, settings, steps)
    before = desired.load(state, deployment.name)
    desired.save(state, wanted if before is None else _same_age(wanted, before))
    try:
        admin.post(f"/deployments/{deployment.name}/reload", dict[str, str])
        following.go_live(admin, deployment.name, where.url, steps)
    except (ModelyardError, KeyboardInterrupt):
        if before is None:
            desired.remove(state, deployment.name)
        raise


def _same_age(wanted: desired.Wanted, before: desired.Wanted) -> desired.Wanted:
    """An unchanged deployment stays the same record: nothing is restarted for it."""
    return msgspec.structs.replace(wanted, created_at=before.created_at)


def _tell_how_to_call(admin: Admin, where: Listening, deployments: Sequence[Deployment], as_json: bool) -> None:
    keys = admin.get("/keys", list[ListedKey])
    lasting = [key for key in keys if key.expires_at is None and key.revoked_at is None]
    made = None if lasting else admin.post("/keys", MadeKey, {"name": "first"})
    names = tuple(deployment.name for deployment in deployments)
    if as_json:
        shown = (made.key, made.id) if made is not None else (None, None)
        serving = Serving(url=where.url, deployments=names, key=shown[0], key_id=shown[1])
        print(msgspec.json.encode(serving).decode(), flush=True)
        return
    say("")
    say(f"  base URL   {where.url}")
    say(f"  model      {', '.join(names)}")
    if made is not None:
        say(f"  key        {made.key}    (shown once; `modelyard keys create NAME` makes more)")
    else:
        say(f"  key        yours from before ({lasting[0].name!r}); `modelyard keys create NAME` makes another")
    say(f"  talk       modelyard chat {names[0]}")
    say("")


def _stay(admin: Admin, name: str, started: StartedYard, as_json: bool) -> None:
    if not as_json:
        say("serving; Ctrl-C stops it")
    with contextlib.suppress(KeyboardInterrupt), _terminated_like_interrupted():
        following.watch(admin, name, SevenSteps(name, OUT, as_json), lambda: started.process.poll() is None)
        raise EngineFailed("the yard ended by itself", hint="modelyard logs --yard")


@contextlib.contextmanager
def _terminated_like_interrupted() -> Generator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop(started: StartedYard, *, quietly: bool) -> None:
    """Ask a yard of ours to stop and wait for it; a second Ctrl-C no longer waits."""
    if started.process.poll() is None:
        if not quietly:
            say("stopping: running requests finish, then the engines end")
        started.process.send_signal(signal.SIGTERM)
        started.process.wait(STOP_WITHIN_S)
    if started.ends_with_us is not None:
        os.close(started.ends_with_us)
        started.ends_with_us = None

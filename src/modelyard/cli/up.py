"""`modelyard up`: the main job, from a model to a proved endpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from modelyard import settings as settings_module
from modelyard.cli import following, telling_systemd
from modelyard.cli.admin import Admin, listening, running, state_directory
from modelyard.cli.announcing import announce
from modelyard.cli.choosing import Choice, choose
from modelyard.cli.keys import MadeKey
from modelyard.cli.options import WHAT, Json
from modelyard.cli.output import OUT, say, tilde
from modelyard.cli.prepare import prepare
from modelyard.cli.seven_steps import SevenSteps
from modelyard.cli.starting import StartedYard, start_yard
from modelyard.control import wanted as desired
from modelyard.control.key_log import ListedKey
from modelyard.control.views import Reloaded
from modelyard.errors import EngineFailed, ModelyardError, UsageError
from modelyard.records.base import Record
from modelyard.records.listening import Listening
from modelyard.spec.deployment import Deployment, DeploymentFile, Gateway, Tls, default_deployment, load_file
from modelyard.spec.wanted import Name
from modelyard.state import StateDirectory


class Serving(Record, tag_field="event", tag="serving", kw_only=True):
    """The last line of `up --json`. `key` is shown this once, and only where one was made."""

    url: str
    deployments: tuple[str, ...]
    key: str | None
    key_id: str | None


def up(
    what: Annotated[str | None, WHAT] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it serves; `modelyard down` ends it.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Public name, in place of the model's.")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine, in place of the planned one.")] = None,
    host: Annotated[str | None, typer.Option(help="Where clients connect; beyond loopback TLS is demanded.")] = None,
    port: Annotated[int | None, typer.Option(help="Port for clients; 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Gateway processes on the one port.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Serve HTTPS with this certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Let in only clients with a certificate of these authorities (PEM).")
    ] = None,
    insecure_listen: Annotated[
        bool, typer.Option(help="Listen beyond loopback without TLS: something else guards it.")
    ] = False,
    json: Json = False,
) -> None:
    """Serve a model: prepare, plan, start, prove, go live, and keep it there.

    Without arguments it serves ./modelyard.yaml, or else the packaged model. With a yard running already, the
    deployments are added to it. Ctrl-C stops what this command started: running requests finish, unless it is pressed
    again.
    """
    asked = _asked_gateway(host, port, workers, _tls(tls_cert, tls_key, tls_client_ca))
    choice = choose(what, Path())
    file = _wanted_file(choice, name, engine, asked)
    state, settings = state_directory(), settings_module.load()
    with _terminated_like_interrupted(), contextlib.ExitStack() as cleaning:
        found = listening(state)
        if not json:
            announce(choice, file, state, settings, serving=found is not None, detached=detach)
        if found is not None and asked:
            raise UsageError(f"{found.url} serves already: where it listens cannot be changed", hint="modelyard down")
        started = _start(state, file, insecure=insecure_listen) if found is None else None
        if started is not None:
            cleaning.callback(_stop, started, quietly=json)
        where = started.listening if started is not None else running(state)
        admin = Admin(state)
        for deployment in file.deployments:
            _bring_up(deployment, state, settings, admin, where, json)
        names = [deployment.name for deployment in file.deployments]
        _tell_how_to_call(admin, where, names, detached=detach, as_json=json)
        telling_systemd.tell(
            settings.environ, telling_systemd.READY, f"STATUS=serving {', '.join(names)} at {where.url}"
        )
        if started is not None and not detach:
            _stay(admin, names, started, json)
            return
        cleaning.pop_all()
        if started is not None:
            started.let_go()


def _wanted_file(choice: Choice, name: str | None, engine: str | None, asked: dict[str, Any]) -> DeploymentFile:
    if choice.is_file:
        file = load_file(Path(choice.what))
        file = msgspec.structs.replace(file, gateway=msgspec.structs.replace(file.gateway, **asked))
    else:
        file = DeploymentFile(deployments=(default_deployment(choice.what),), gateway=Gateway(**asked))
    if name is None and engine is None:
        return file
    first, *others = file.deployments
    if others:
        raise UsageError("--name and --engine are for one deployment", hint="write them into the file")
    changed = msgspec.structs.replace(first, name=_checked_name(name or first.name), engine=engine or first.engine)
    return msgspec.structs.replace(file, deployments=(changed,))


def _checked_name(name: str) -> str:
    """What a file's `name` must be, --name must be too."""
    try:
        return msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        hint = "lower-case letters and digits, with single dots or hyphens between them, at most 63 characters"
        raise UsageError(f"{name!r} cannot be a deployment's name", hint=hint) from error


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    if (cert is None) != (key is None) or (client_ca is not None and cert is None):
        raise UsageError("TLS needs both files", hint="give --tls-cert and --tls-key")
    if cert is None or key is None:
        return None
    authorities = str(client_ca.absolute()) if client_ca is not None else None
    return Tls(cert=str(cert.absolute()), key=str(key.absolute()), client_ca=authorities)


def _asked_gateway(host: str | None, port: int | None, workers: int | None, tls: Tls | None) -> dict[str, Any]:
    """What the options say about the gateway, and nothing that they leave to the file."""
    asked = {"host": host, "port": port, "workers": workers, "tls": tls}
    return {name: value for name, value in asked.items() if value is not None}


def _start(state: StateDirectory, file: DeploymentFile, *, insecure: bool) -> StartedYard:
    """A fresh yard serves what this command names, and nothing from before."""
    for name in desired.names(state):
        desired.remove(state, name)
    return start_yard(state, file.gateway, insecure=insecure)


def _bring_up(
    deployment: Deployment,
    state: StateDirectory,
    settings: settings_module.Settings,
    admin: Admin,
    where: Listening,
    as_json: bool,
) -> None:
    """Through all seven steps. A deployment that fails stays wanted and closed: status and logs tell of it, and
    `modelyard restart` tries again. One that is interrupted before it ever served is withdrawn."""
    steps = SevenSteps(deployment.name, OUT, as_json)
    if not as_json:
        from_ = "" if deployment.name == deployment.model else f": {tilde(deployment.model)}"
        say(f"{deployment.name}{from_}")
    wanted = prepare(deployment, state, settings, steps)
    before = desired.load(state, deployment.name)
    desired.save(state, wanted if before is None else _same_age(wanted, before))
    try:
        reloaded = admin.post(f"/deployments/{deployment.name}/reload", Reloaded)
        following.go_live(admin, deployment.name, where.url, steps, reloaded.after_step)
    except KeyboardInterrupt:
        if before is None:
            desired.remove(state, deployment.name)
            with contextlib.suppress(ModelyardError):
                admin.delete(f"/deployments/{deployment.name}", dict[str, str])
        raise


def _same_age(wanted: desired.Wanted, before: desired.Wanted) -> desired.Wanted:
    """An unchanged deployment stays the same record: nothing is restarted for it."""
    return msgspec.structs.replace(wanted, created_at=before.created_at)


def _tell_how_to_call(admin: Admin, where: Listening, names: list[str], *, detached: bool, as_json: bool) -> None:
    keys = admin.get("/keys", list[ListedKey])
    lasting = [key for key in keys if key.expires_at is None and key.revoked_at is None]
    made = None if lasting else admin.post("/keys", MadeKey, {"name": "first"})
    if as_json:
        shown = (made.key, made.id) if made is not None else (None, None)
        serving = Serving(url=where.url, deployments=tuple(names), key=shown[0], key_id=shown[1])
        print(msgspec.json.encode(serving).decode(), flush=True)
        return
    us = settings_module.load().command
    say(f"\n  base URL   {where.url}\n  model      {', '.join(names)}")
    if made is not None:
        # On a line of its own, so that it can be copied; too long for the others' column.
        say(f"  key        shown this once; `{us} keys create NAME` makes more\n\n{made.key}\n")
    else:
        say(f"  key        yours from before ({lasting[0].name!r}); `{us} keys create NAME` makes another\n")
    say(f"  talk       {us} chat {names[0]}" + (f"\n  stop       {us} down" if detached else "") + "\n")


def _stay(admin: Admin, names: list[str], started: StartedYard, as_json: bool) -> None:
    """Until Ctrl-C, which is how serving in the foreground ends well."""
    with _noted(signal.SIGINT, signal.SIGTERM) as interrupted:
        if not as_json:
            say("serving; Ctrl-C stops it")
        serves = lambda: not interrupted.is_set() and started.process.poll() is None  # noqa: E731
        following.watch(admin, names, OUT, as_json, serves)
        if interrupted.is_set():
            return
        if started.process.wait() != 0:
            raise EngineFailed("the yard ended by itself", hint="modelyard logs --yard")
        if not as_json:
            say("stopped by another command")


@contextlib.contextmanager
def _noted(*numbers: signal.Signals) -> Generator[threading.Event]:
    """Signals set the event and interrupt nothing: a KeyboardInterrupt that falls into a destructor or a callback is
    printed there and lost."""
    event = threading.Event()

    def note(*_: object) -> None:
        event.set()

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Generator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(started: StartedYard, *, quietly: bool) -> None:
    telling_systemd.tell(settings_module.load().environ, telling_systemd.STOPPING)
    if started.process.poll() is None and not quietly:
        say("stopping: requests finish, then the engines end (Ctrl-C again: at once)")
    started.stop()

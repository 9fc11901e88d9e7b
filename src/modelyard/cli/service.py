"""`modelyard service`: a systemd unit that keeps a deployment file served, also over a restart of the machine."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from modelyard import settings as settings_module
from modelyard.cli.options import Json
from modelyard.cli.output import print_json, say
from modelyard.errors import ModelyardError, UsageError
from modelyard.spec.deployment import load
from modelyard.state import write_atomically

app = typer.Typer(help="A systemd unit that keeps a deployment file served.", no_args_is_help=True)
UNIT = "modelyard.service"
SYSTEM_FOLDER = Path("/etc/systemd/system")
# What a new start would only repeat: usage, model, plan, red checks, address, lock.
FINAL_CODES = "2 4 5 7 8 9"

File = Annotated[Path, typer.Argument(help="The deployment file that is to be served.")]
System = Annotated[
    bool, typer.Option("--system/--user", help="For the machine, with a user of its own; or for you, without root.")
]
RunAs = Annotated[str | None, typer.Option("--run-as", help="With --system: the user whose service it is.")]


@dataclass(frozen=True, slots=True)
class Unit:
    """What the text of the unit depends on. `program` is how we are called; paths are absolute."""

    program: str
    file: Path
    system: bool
    run_as: str
    environ: tuple[tuple[str, str], ...] = ()


@app.command("show")
def show_unit(
    file: File = Path("modelyard.yaml"), system: System = False, run_as: RunAs = None, json: Json = False
) -> None:
    """Print the unit, and write nothing."""
    text = text_of(_unit(file, system=system, run_as=run_as))
    if json:
        print_json({"unit": UNIT, "path": str(_folder(system=system) / UNIT), "text": text})
    else:
        say(text.rstrip("\n"))


@app.command()
def install(
    file: File = Path("modelyard.yaml"),
    system: System = False,
    run_as: RunAs = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a unit that says something else.")] = False,
    json: Json = False,
) -> None:
    """Write the unit where systemd looks for it, and say how to start it."""
    unit = _unit(file, system=system, run_as=run_as)
    path = _folder(system=system) / UNIT
    _write(path, text_of(unit), replace=replace, system=system)
    steps = _next_steps(unit)
    if json:
        print_json({"path": str(path), "next": steps})
        return
    say(f"{path} is written. Next:")
    for step in steps:
        say(f"  {step}")


def _write(path: Path, text: str, *, replace: bool, system: bool) -> None:
    try:
        if path.exists() and path.read_text() != text and not replace:
            raise UsageError(
                f"{path} says something else", hint="look at it, then `modelyard service install --replace`"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode(), mode=0o644)
    except OSError as error:
        hint = "as root, or without --system for a service of your own" if system else "check the folder's owner"
        raise ModelyardError(f"{path} cannot be written: {error.strerror}", hint=hint) from error


def _next_steps(unit: Unit) -> tuple[str, ...]:
    control = "systemctl" if unit.system else "systemctl --user"
    steps = (f"{control} daemon-reload", f"{control} enable --now {UNIT}", f"{control} status {UNIT}")
    if not unit.system:
        return (*steps, f"loginctl enable-linger {getpass.getuser()}    # it shall run while you are not logged in")
    try:
        pwd.getpwnam(unit.run_as)
    except KeyError:
        return (f"useradd --system --no-create-home {unit.run_as}", *steps)
    return steps


def _folder(*, system: bool) -> Path:
    if system:
        return SYSTEM_FOLDER
    environ = settings_module.load().environ
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".config")
    return Path(base) / "systemd" / "user"


def _unit(file: Path, *, system: bool, run_as: str | None) -> Unit:
    if run_as is not None and not system:
        raise UsageError("--run-as is for --system", hint="a service of your own runs as you")
    load(file)
    return Unit(
        program=_program(),
        file=file.absolute(),
        system=system,
        run_as=run_as or "modelyard",
        environ=_environ(system=system),
    )


def _program() -> str:
    """An absolute path: systemd has no PATH of yours."""
    beside = Path(sys.executable).with_name("modelyard")
    found = str(beside) if beside.exists() else shutil.which("modelyard")
    if found is None:
        raise ModelyardError(
            "there is no `modelyard` program to start", hint="install Modelyard, or use a checkout's ./yard"
        )
    return os.path.abspath(found)


def _environ(*, system: bool) -> tuple[tuple[str, str], ...]:
    """What a service of yours must know of your shell: where state lies, if it was said. Never a secret."""
    environ = settings_module.load().environ
    kept = [(name, environ[name]) for name in ("MODELYARD_STATE", "MODELYARD_LEASE_S") if name in environ]
    return () if system else tuple(kept)


def text_of(unit: Unit) -> str:
    """The whole unit file. What each line is for stands beside it, since people change units."""
    return "\n".join((*_head(unit), *_service(unit), *(_system(unit) if unit.system else _user(unit)))) + "\n"


def _head(unit: Unit) -> list[str]:
    return [
        "# Made by `modelyard service`. Ready means: every deployment of the file is proved and its route open.",
        "[Unit]",
        "Description=Modelyard: a proved endpoint for language models",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=600",
        "StartLimitBurst=5",
        "",
    ]


def _service(unit: Unit) -> list[str]:
    return [
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={_quoted(unit.program)} up {_quoted(str(unit.file))}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in unit.environ),
        "# The gateway's processes are replaced, no request fails: certificates and an upgraded program are taken in.",
        f"ExecReload={_quoted(unit.program)} reload",
        "# A model may have to be fetched and loaded first; what is hopeless says so by itself.",
        "TimeoutStartSec=infinity",
        "# Running requests finish, then engines end: `modelyard up` sees to its own, systemd to what is left.",
        "# With KillMode=process engines outlive a killed yard by the lease (MODELYARD_LEASE_S, 5 s); a longer one is",
        "# of use only there.",
        "KillMode=mixed",
        "TimeoutStopSec=120",
        "Restart=on-failure",
        "RestartSec=5",
        "# Usage, model, plan, a red check, the address, the lock: the next start would end the same way.",
        f"RestartPreventExitStatus={FINAL_CODES}",
        "LimitNOFILE=65536",
        "UMask=0077",
        "NoNewPrivileges=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
    ]


def _system(unit: Unit) -> list[str]:
    return [
        f"User={unit.run_as}",
        "StateDirectory=modelyard",
        "StateDirectoryMode=0700",
        "CacheDirectory=modelyard",
        "Environment=MODELYARD_STATE=%S/modelyard",
        "Environment=HOME=%S/modelyard",
        "Environment=UV_CACHE_DIR=%C/modelyard/uv",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "PrivateTmp=yes",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
        "ProtectControlGroups=yes",
        "ProtectClock=yes",
        "RestrictRealtime=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]


def _user(unit: Unit) -> list[str]:
    return ["", "[Install]", "WantedBy=default.target"]


def _quoted(text: str) -> str:
    """One word of a unit file: `%` is doubled, quotes and backslashes are escaped (systemd.syntax, systemd.unit)."""
    text = text.replace("%", "%%")
    if all(letter.isalnum() or letter in "/._-=:@%+" for letter in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$") + '"'

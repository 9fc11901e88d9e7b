"""The only reader of the process environment: where state lives and how packages are fetched."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.errors import UsageError


@dataclass(frozen=True, slots=True)
class PackageIndex:
    """Where packages come from; empty fields leave uv its own configuration. `indexes_are_equal`: the best version of
    all indexes is taken, as pip does with its extra ones; otherwise the first index that knows a package decides.
    Addresses may hold credentials: none is shown by `repr`."""

    index_url: str = field(default="", repr=False)
    extra_index_urls: tuple[str, ...] = field(default=(), repr=False)
    find_links: tuple[str, ...] = field(default=(), repr=False)
    certificate: str = ""
    offline: bool = False
    indexes_are_equal: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """`environ` is what children may inherit; secrets of ours never stand in it. `command` is what people type to run
    us: a wrapper names itself in MODELYARD_COMMAND. `build` is the build of engines that is taken whatever the
    machine has (MODELYARD_BUILD); empty leaves that to the machine."""

    state_dir: Path
    index: PackageIndex
    lease_s: float
    environ: Mapping[str, str] = field(repr=False)
    command: str = "modelyard"
    build: str = ""


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from `environ` (the process environment if None): MODELYARD_* first, then what users of uv and pip have
    already set (UV_INDEX_URL, PIP_INDEX_URL, PIP_FIND_LINKS, ...), then what stands in pip's configuration files."""
    env = dict(os.environ if environ is None else environ)
    return Settings(
        state_dir=_state_dir(env),
        index=_index(env),
        lease_s=_lease_s(env),
        environ=env,
        command=env.get("MODELYARD_COMMAND") or "modelyard",
        build=env.get("MODELYARD_BUILD", ""),
    )


def _index(env: Mapping[str, str]) -> PackageIndex:
    told = {**_pip_options(env), **env}
    of_uv = _words(told, "MODELYARD_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL")
    return PackageIndex(
        index_url=_first(told, "MODELYARD_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"),
        extra_index_urls=of_uv or _words(told, "PIP_EXTRA_INDEX_URL"),
        find_links=_words(told, "MODELYARD_FIND_LINKS", "UV_FIND_LINKS", "PIP_FIND_LINKS"),
        certificate=_first(told, "MODELYARD_CA_FILE", "SSL_CERT_FILE", "PIP_CERT"),
        offline=_first(told, "MODELYARD_OFFLINE", "UV_OFFLINE") not in ("", "0", "false"),
        indexes_are_equal=not of_uv,
    )


def _pip_options(env: Mapping[str, str]) -> dict[str, str]:
    """What stands in pip's configuration files, under the names of pip's own variables: uv reads neither.

    Files and order: pip's documentation, "Configuration". A file that pip itself could not read is passed over."""
    home = Path(env.get("HOME") or "/nonexistent")
    system = [Path(folder) / "pip" for folder in (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")]
    user = [home / ".pip", Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "pip"]
    files = [folder / "pip.conf" for folder in (*system, Path("/etc"), *user, Path(sys.prefix))]
    if chosen := env.get("PIP_CONFIG_FILE"):
        files = [] if chosen == os.devnull else [*files, Path(chosen)]
    found: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {f"PIP_{key.upper().replace('-', '_')}": value for key, value in parser.items(section)}
    return found


def _lease_s(env: Mapping[str, str]) -> float:
    text = env.get("MODELYARD_LEASE_S") or "5"
    try:
        lease_s = float(text)
    except ValueError:
        lease_s = 0.0
    if not 2 <= lease_s <= 3600:
        raise UsageError(f"MODELYARD_LEASE_S is {text!r}", hint="give seconds from 2 to 3600")
    return lease_s


def _state_dir(env: Mapping[str, str]) -> Path:
    if chosen := env.get("MODELYARD_STATE"):
        return Path(chosen).expanduser().absolute()
    base = env.get("XDG_STATE_HOME") or str(Path(env.get("HOME", "~")).expanduser() / ".local" / "state")
    return Path(base) / "modelyard"


def _first(env: Mapping[str, str], *names: str) -> str:
    return next((env[name] for name in names if env.get(name)), "")


def _words(env: Mapping[str, str], *names: str) -> tuple[str, ...]:
    """pip separates by spaces, uv by commas; a URL holds neither."""
    return tuple(_first(env, *names).replace(",", " ").split())

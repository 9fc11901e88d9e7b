"""The only reader of the process environment: where state lives and how packages are fetched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PackageIndex:
    """Where packages come from. Empty fields leave the package client its own configuration (pip's files included)."""

    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    certificate: str = ""
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """`environ` is what children may inherit; secrets of ours never stand in it. `command` is what people type to run
    us: a wrapper names itself in MODELYARD_COMMAND."""

    state_dir: Path
    index: PackageIndex
    lease_s: float
    environ: Mapping[str, str] = field(repr=False)
    command: str = "modelyard"


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from `environ` (the process environment if None): MODELYARD_* first, then what pip and uv users have
    already set (PIP_INDEX_URL, UV_INDEX_URL, PIP_FIND_LINKS, ...)."""
    env = dict(os.environ if environ is None else environ)
    return Settings(
        state_dir=_state_dir(env),
        index=PackageIndex(
            index_url=_first(env, "MODELYARD_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"),
            extra_index_urls=_words(env, "MODELYARD_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"),
            find_links=_words(env, "MODELYARD_FIND_LINKS", "UV_FIND_LINKS", "PIP_FIND_LINKS"),
            certificate=_first(env, "MODELYARD_CA_FILE", "SSL_CERT_FILE", "PIP_CERT"),
            offline=_first(env, "MODELYARD_OFFLINE", "UV_OFFLINE") not in ("", "0", "false"),
        ),
        lease_s=float(_first(env, "MODELYARD_LEASE_S") or "5"),
        environ=env,
        command=env.get("MODELYARD_COMMAND") or "modelyard",
    )


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

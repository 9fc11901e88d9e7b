"""The only reader of the process environment: where state lives, how packages and models are fetched."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

from modelyard.errors import UsageError

# No child of ours needs them.
_HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


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
class Network:
    """How servers of model files are reached. `proxies` maps a URL's scheme to its proxy, and "no" to the hosts that
    need none, as in HTTPS_PROXY and NO_PROXY; `certificate` is a PEM file of authorities to trust beside the
    machine's own."""

    proxies: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    certificate: str = ""
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub that speaks Hugging Face's protocol, under the names of its own client. `token` is empty where none is set;
    then the first of `token_files` that exists holds it. `cache` is that client's: what is there is used in place."""

    endpoint: str
    cache: Path
    token: str = field(default="", repr=False)
    token_files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A collector that takes OTLP over HTTP, under OpenTelemetry's own variables; nothing is sent where `endpoint` is
    empty. `headers` may hold a credential."""

    endpoint: str = ""
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    metrics_every_s: float = 60.0
    resource: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Settings:
    """`environ` is what children may inherit; secrets of ours never stand in it. `command` is what people type to run
    us: a wrapper names itself in MODELYARD_COMMAND. `build` is the build of engines that is taken whatever the
    machine has (MODELYARD_BUILD); empty leaves that to the machine. `ollama_stores` are the folders where Ollama may
    keep models."""

    state_dir: Path
    index: PackageIndex
    lease_s: float
    network: Network
    hub: Hub
    ollama_stores: tuple[Path, ...]
    environ: Mapping[str, str] = field(repr=False)
    command: str = "modelyard"
    build: str = ""
    telemetry: Telemetry = Telemetry()


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from `environ` (the process environment if None): MODELYARD_* first, then what users of uv and pip have
    already set (UV_INDEX_URL, PIP_INDEX_URL, PIP_FIND_LINKS, ...), then what stands in pip's configuration files."""
    env = dict(os.environ if environ is None else environ)
    state_dir = _state_dir(env)
    index = _index(env)
    # Where an unpacked deployment brought its packages along (state.StateDirectory.wheels).
    if (wheels := state_dir / "wheels").is_dir():
        index = replace(index, find_links=(*index.find_links, str(wheels)))
    return Settings(
        state_dir=state_dir,
        index=index,
        lease_s=_lease_s(env),
        network=_network(env, index),
        hub=_hub(env),
        ollama_stores=_ollama_stores(env),
        environ={name: value for name, value in env.items() if name not in _HUB_TOKENS},
        command=env.get("MODELYARD_COMMAND") or "modelyard",
        build=env.get("MODELYARD_BUILD", ""),
        telemetry=_telemetry(env),
    )


def _index(env: Mapping[str, str]) -> PackageIndex:
    told = {**_pip_options(env), **env}
    of_uv = _words(told, "MODELYARD_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL")
    return PackageIndex(
        index_url=_first(told, "MODELYARD_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"),
        extra_index_urls=of_uv or _words(told, "PIP_EXTRA_INDEX_URL"),
        find_links=_words(told, "MODELYARD_FIND_LINKS", "UV_FIND_LINKS", "PIP_FIND_LINKS"),
        certificate=_first(told, "MODELYARD_CA_FILE", "SSL_CERT_FILE", "PIP_CERT"),
        offline=_yes(_first(told, "MODELYARD_OFFLINE", "UV_OFFLINE")),
        indexes_are_equal=not of_uv,
    )


def _network(env: Mapping[str, str], index: PackageIndex) -> Network:
    """Lower case wins, as for curl: servers of the CGI kind set HTTP_PROXY from what a request says."""
    names = (("http", "http_proxy"), ("https", "https_proxy"), ("all", "all_proxy"), ("no", "no_proxy"))
    proxies = {key: value for key, name in names if (value := env.get(name) or env.get(name.upper()))}
    return Network(
        proxies=proxies,
        certificate=index.certificate or _first(env, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        offline=_yes(_first(env, "MODELYARD_OFFLINE", "HF_HUB_OFFLINE")),
    )


def _hub(env: Mapping[str, str]) -> Hub:
    """Names and places: huggingface_hub's documentation, "Environment variables"."""
    cache = Path(env.get("XDG_CACHE_HOME") or _home(env) / ".cache")
    home = Path(env.get("HF_HOME") or cache / "huggingface").expanduser()
    return Hub(
        endpoint=(env.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
        cache=Path(_first(env, "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") or home / "hub").expanduser().absolute(),
        token=_first(env, *_HUB_TOKENS).strip(),
        token_files=(Path(env.get("HF_TOKEN_PATH") or home / "token").expanduser(),),
    )


def _ollama_stores(env: Mapping[str, str]) -> tuple[Path, ...]:
    """The one that is named; else the user's own, then where Ollama's installer for Linux puts its service."""
    if chosen := env.get("OLLAMA_MODELS"):
        return (Path(chosen).expanduser().absolute(),)
    return (_home(env) / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models"))


def _home(env: Mapping[str, str]) -> Path:
    return Path(env.get("HOME") or "/nonexistent")


def _telemetry(env: Mapping[str, str]) -> Telemetry:
    """Names and meanings: OpenTelemetry's specification, "OTLP Exporter" and "Environment Variables"."""
    if _yes(env.get("OTEL_SDK_DISABLED", "")):
        return Telemetry()
    interval_ms = env.get("OTEL_METRIC_EXPORT_INTERVAL", "")
    resource = {"service.name": "modelyard", **_pairs(env.get("OTEL_RESOURCE_ATTRIBUTES", ""))}
    if name := env.get("OTEL_SERVICE_NAME"):
        resource["service.name"] = name
    return Telemetry(
        endpoint=env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").rstrip("/"),
        headers=_pairs(env.get("OTEL_EXPORTER_OTLP_HEADERS", "")),
        metrics_every_s=int(interval_ms) / 1000 if interval_ms.isdigit() and int(interval_ms) > 0 else 60.0,
        resource=resource,
    )


def _pairs(text: str) -> dict[str, str]:
    """`a=1,b=2`, with values as in a URL."""
    parts = (part.partition("=") for part in text.split(",") if "=" in part)
    return {name.strip(): unquote(value.strip()) for name, _, value in parts if name.strip()}


def _yes(text: str) -> bool:
    return text.lower() not in ("", "0", "false", "no", "off")


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

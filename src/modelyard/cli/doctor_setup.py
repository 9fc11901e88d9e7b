"""What surrounds us: Python, the package client and its index, certificates, proxies, variables, a service manager."""

from __future__ import annotations

import difflib
import platform
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from modelyard.errors import EnvironmentFailed
from modelyard.packages import explain_uv_failure, uv_command, uv_environ, uv_process
from modelyard.records.finding import Finding
from modelyard.settings import PackageIndex, Settings

# The whole command shall take less than two seconds: an index that needs longer is slow enough to be told.
_INDEX_TIMEOUT_S = 1.5
# Something small that every index of Python packages has, because we are installed with it.
_ASKED_PACKAGE = "msgspec"
_NEWEST_TRIED = (3, 13)
_OURS = {
    *("MODELYARD_STATE", "MODELYARD_INDEX_URL", "MODELYARD_EXTRA_INDEX_URL", "MODELYARD_FIND_LINKS"),
    *("MODELYARD_CA_FILE", "MODELYARD_OFFLINE", "MODELYARD_LEASE_S", "MODELYARD_COMMAND", "MODELYARD_BUILD"),
    *("MODELYARD_PYTHON", "MODELYARD_CI"),
}
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


def judge_setup(settings: Settings) -> tuple[Finding, ...]:
    """Everything but the index, which is asked beside this."""
    return (
        *_python(),
        *_package_client(),
        *_certificates(settings.index),
        *_proxies(settings.environ),
        *_variables(settings.environ),
        *_service_manager(),
    )


def judge_index(settings: Settings, *, needed: bool) -> tuple[Finding, ...]:
    """Whether the package client gets an answer from the index, with all of its own configuration, credentials and
    proxies: asking the URL ourselves would show less. `needed` where no engine is installed yet."""
    index = settings.index
    if index.offline:
        where = f"wheels in {', '.join(index.find_links)}" if index.find_links else "what is installed already"
        return (
            Finding(
                severity="note" if index.find_links or not needed else "error",
                check="package index",
                what=f"the settings say offline: environments are made from {where} alone",
                why="no index is asked",
                remedy="" if index.find_links else "name a folder of wheels in MODELYARD_FIND_LINKS",
            ),
        )
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        (Path(folder) / "asked.in").write_text(f"{_ASKED_PACKAGE}\n")
        command = [
            "pip",
            "compile",
            "--no-cache",
            "--no-deps",
            "--python",
            sys.executable,
            "asked.in",
            "-o",
            "told.txt",
        ]
        environ = {**uv_environ(index, settings.environ), "UV_HTTP_RETRIES": "0"}
        try:
            with uv_process(command, environ, cwd=Path(folder), stderr=log.fileno()) as child:
                code = child.wait(_INDEX_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            cause, hint = f"did not answer within {_INDEX_TIMEOUT_S:g} s", "check the network and the proxy"
        except EnvironmentFailed:
            return ()
        else:
            if code == 0:
                return ()
            log.seek(0)
            cause, hint = explain_uv_failure(log.read().decode(errors="replace"))
    cause, _, said = cause.partition("\n")
    return (
        Finding(
            severity="error" if needed else "warning",
            check="package index",
            what=f"the package index: {cause}",
            why="engines are installed from it"
            + ("" if needed else "; those that are installed already still run")
            + (f"\n{said}" if said else ""),
            remedy=hint,
        ),
    )


def _python() -> Iterator[Finding]:
    if sys.version_info[:2] > _NEWEST_TRIED:
        yield Finding(
            severity="warning",
            check="python",
            what=f"this is Python {platform.python_version()}",
            why="some engines have no wheels for it yet: they would not install",
            remedy="set Modelyard up with Python 3.11 to 3.13",
        )
    if sys.prefix == sys.base_prefix:
        yield Finding(
            severity="note",
            check="python",
            what="Modelyard is installed in the system's Python, not in an environment of its own",
            why="an upgrade of the system's packages may change it",
            remedy="python3 -m venv, and install Modelyard there; a checkout's ./yard does it",
        )


def _package_client() -> Iterator[Finding]:
    try:
        uv_command()
    except EnvironmentFailed as error:
        yield Finding(
            severity="error",
            check="uv",
            what=error.message,
            why="it makes the engines' environments",
            remedy=error.hint,
        )


def _certificates(index: PackageIndex) -> Iterator[Finding]:
    if not index.certificate:
        return
    try:
        ssl.create_default_context(cafile=index.certificate)
    except (OSError, ssl.SSLError) as error:
        yield Finding(
            severity="error",
            check="certificates",
            what=f"the CA file {index.certificate} cannot be used: {error}",
            why="the package index and the fetch of models check certificates against it",
            remedy="name a file of PEM certificates in MODELYARD_CA_FILE, or unset SSL_CERT_FILE and PIP_CERT",
        )


def _proxies(environ: Mapping[str, str]) -> Iterator[Finding]:
    name = next((one for one in _PROXIES if environ.get(one)), None)
    if name is None:
        return
    # A proxy's URL may hold a password: the host is all that is shown.
    host = urlsplit(environ[name]).hostname or "one that cannot be read"
    passed = {one.strip() for one in (environ.get("NO_PROXY") or environ.get("no_proxy") or "").split(",")}
    open_way = bool(passed & {"127.0.0.1", "localhost", "*"})
    yield Finding(
        severity="note" if open_way else "warning",
        check="proxy",
        what=f"{name} is set ({host})" + ("" if open_way else ", and NO_PROXY names neither 127.0.0.1 nor localhost"),
        why="packages and models are fetched through it"
        + ("" if open_way else "; clients on this machine would look for the gateway through it too"),
        remedy="" if open_way else "export NO_PROXY=127.0.0.1,localhost",
    )


def _variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    for name in sorted(environ):
        if name.startswith("MODELYARD_") and name not in _OURS and not name.startswith("MODELYARD_TEST_"):
            close = difflib.get_close_matches(name, _OURS, n=1)
            yield Finding(
                severity="warning",
                check="variables",
                what=f"{name} is set and means nothing to us",
                why="a setting that is misspelt is a setting that is not made",
                remedy=f"did you mean {close[0]}?" if close else f"unset {name}",
            )
    for name, why in (
        ("LD_PRELOAD", "it is loaded into our own processes too"),
        ("PYTHONPATH", "our commands may import other packages than those that were installed with them"),
        ("PYTHONHOME", "our commands may run with another standard library than their own"),
    ):
        if environ.get(name):
            yield Finding(severity="warning", check="variables", what=f"{name} is set", why=why, remedy=f"unset {name}")
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"):
        if name in environ:
            yield Finding(
                severity="note",
                check="variables",
                what=f"{name} is set to {environ[name]!r}",
                why="engines do not inherit it: their plan says which accelerators they get",
            )
    ours, theirs = environ.get("MODELYARD_INDEX_URL"), environ.get("PIP_INDEX_URL") or environ.get("UV_DEFAULT_INDEX")
    if ours and theirs and ours != theirs:
        yield Finding(
            severity="note",
            check="variables",
            what="MODELYARD_INDEX_URL names another index than pip's or uv's own variables",
            why="engines come from the first, Modelyard itself from the others",
        )


def _service_manager() -> Iterator[Finding]:
    if not (Path("/run/systemd/system").is_dir() and shutil.which("systemctl")):
        yield Finding(
            severity="note",
            check="service manager",
            what="systemd does not run here",
            why="nothing starts the yard again after a reboot, or if all of it is killed",
            remedy="let what supervises this machine or container run `modelyard up`",
        )

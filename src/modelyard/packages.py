"""The package clients: how uv and pip are found, how our index settings reach them, and that no credential of theirs is
repeated. The one place that knows their variables."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

from modelyard.errors import EnvironmentFailed
from modelyard.settings import PackageIndex

STOP_S = 5.0
_TETHERED = Path(__file__).parent / "programs" / "tethered.py"

# Read by settings.load, or set below: an inherited one must not contradict what the settings decided.
_REPLACED = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_OFFLINE",
)
# Shorter ones are hidden in addresses only: elsewhere they would hide half of every sentence.
_SHORTEST_SECRET = 4
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# An activated venv, or a project's environment, is where uv would install if it saw one of these.
_MISLEADING_PIP = ("PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV", "PIP_REQUIREMENT", "PIP_DEST")
_MISLEADING = ("VIRTUAL_ENV", "CONDA_PREFIX", "UV_PROJECT_ENVIRONMENT", "UV_SYSTEM_PYTHON", "PYTHONPATH", "PYTHONHOME")


def uv_command() -> list[str]:
    """The first words of every uv command line: the uv of the running environment.

    Raises EnvironmentFailed where it is missing."""
    try:
        from uv import find_uv_bin

        return [str(Path(find_uv_bin()))]
    except (ImportError, FileNotFoundError):
        raise EnvironmentFailed(
            "the package client uv is not installed beside Modelyard",
            hint=f"{sys.executable} -m pip install uv",
        ) from None


def uv_environ(index: PackageIndex, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a uv process: `base` with the index settings in uv's own variables.

    Fields of `index` that are empty leave uv its configuration files (uv.toml). Proxies and credentials (HTTPS_PROXY,
    UV_INDEX_*_PASSWORD, netrc) pass through from `base`. The extra indexes come before the default one; the first that
    knows a package wins, uv's protection against a stranger's package of the same name, unless they are pip's."""
    env = {name: value for name, value in base.items() if name not in _REPLACED and name not in _MISLEADING}
    if index.index_url:
        env["UV_DEFAULT_INDEX"] = index.index_url
    if extra := (*base.get("UV_INDEX", "").split(), *index.extra_index_urls):
        env["UV_INDEX"] = " ".join(extra)
    if index.find_links:
        env["UV_FIND_LINKS"] = ",".join(index.find_links)
    if extra and index.indexes_are_equal:
        env["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if index.certificate:
        env["SSL_CERT_FILE"] = index.certificate
    # The machine's trust store, as pip: behind a proxy or mirror with a certificate of its own nothing else works.
    env["UV_SYSTEM_CERTS"] = "1"
    if index.offline:
        env["UV_OFFLINE"] = "1"
    env["UV_NO_PROGRESS"] = "1"
    env["UV_PYTHON_DOWNLOADS"] = "never"
    return env


def pip_environ(index: PackageIndex, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a pip process: uv's, and the same index settings in pip's own variables."""
    env = {name: value for name, value in uv_environ(index, base).items() if name not in _MISLEADING_PIP}
    told = {
        "PIP_INDEX_URL": index.index_url,
        "PIP_EXTRA_INDEX_URL": " ".join(index.extra_index_urls),
        "PIP_FIND_LINKS": " ".join(index.find_links),
        "PIP_CERT": index.certificate,
        "PIP_NO_INDEX": "1" if index.offline else "",
    }
    env |= {name: value for name, value in told.items() if value}
    return env | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_NO_CACHE_DIR": "1"}


@contextmanager
def uv_process(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    cwd: Path,
    stderr: int,
    stdout: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> Generator[subprocess.Popen[bytes]]:
    """A running uv, its words going to the file descriptors `stderr` and `stdout`. It ends with us, also when we are
    killed; leaving the block ends it too. It inherits `pass_fds`."""
    command = [*uv_command(), *arguments]
    with _tethered(command, environ, cwd, stderr=stderr, stdout=stdout, pass_fds=pass_fds) as child:
        yield child


@contextmanager
def pip_process(
    arguments: Sequence[str], environ: Mapping[str, str], *, cwd: Path, stderr: int
) -> Generator[subprocess.Popen[bytes]]:
    """Like `uv_process`, for the one thing that uv cannot do: bring wheels as files. Where our own environment has no
    pip (uv's have none), uv brings one for the moment."""
    ours = find_spec("pip") is not None
    pip = [sys.executable, "-m"] if ours else [*uv_command(), "tool", "run", "--python", sys.executable]
    with _tethered([*pip, "pip", *arguments], environ, cwd, stderr=stderr) as child:
        yield child


@contextmanager
def _tethered(
    command: Sequence[str],
    environ: Mapping[str, str],
    cwd: Path,
    *,
    stderr: int,
    stdout: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> Generator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_TETHERED), *command],
        cwd=cwd,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
    )
    try:
        yield child
    finally:
        assert child.stdin is not None
        child.stdin.close()
        child.wait(STOP_S)


def masked(text: str, index: PackageIndex, environ: Mapping[str, str]) -> str:
    """`text` without the credentials of any address: what stands before an `@`, and the passwords of the index and
    proxy settings wherever they appear. uv itself hides passwords only, and not in everything that it repeats."""
    for secret in sorted(_secrets(index, environ), key=len, reverse=True):
        text = text.replace(secret, "***")
    return re.sub(r"(?<=://)[^/\s'\"`<>]+@", "***@", text)


def _secrets(index: PackageIndex, environ: Mapping[str, str]) -> set[str]:
    addresses = [index.index_url, *index.extra_index_urls, *index.find_links, *environ.get("UV_INDEX", "").split()]
    addresses += [value for name, value in environ.items() if name.upper() in _PROXIES]
    found = {value for name, value in environ.items() if re.fullmatch(r"UV_INDEX_.*_PASSWORD", name)}
    for address in addresses:
        # Of `user:p/w@host` a parser takes the `/` for the end of the host; people write such passwords all the same.
        user, _, password = address.partition("://")[2].rpartition("@")[0].partition(":")
        # A name alone is a token.
        found |= {password or user, unquote(password or user)}
    return {secret for secret in found if len(secret) >= _SHORTEST_SECRET}


def explain_uv_failure(stderr: str) -> tuple[str, str]:
    """(cause, what to try) of a failed uv command, with uv's own last lines in the cause."""
    text = stderr.lower()
    tail = "\n".join(f"  uv: {line}" for line in stderr.strip().splitlines()[-6:])
    cause, hint = next(
        ((cause, hint) for signs, cause, hint in _FAILURES if any(sign in text for sign in signs)),
        ("the package client failed", "the lines above are the package client's own words"),
    )
    return f"{cause}\n{tail}" if tail else cause, hint


# First match wins: the more specific sign stands first.
_FAILURES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("no space left on device", "os error 28", "disk quota exceeded"),
        "the disk is full",
        "free some space, or set MODELYARD_STATE to a folder on a larger disk",
    ),
    (
        ("network was disabled", "network connectivity is disabled"),
        "the package is in no local index and the network is off",
        "name a folder of wheels in MODELYARD_FIND_LINKS, or unset MODELYARD_OFFLINE",
    ),
    (
        ("certificate", "unknownissuer"),
        "the package index shows a certificate that this machine does not trust",
        "name your organisation's CA file in MODELYARD_CA_FILE",
    ),
    (
        ("401 unauthorized", "403 forbidden", "407 proxy"),
        "the package index refuses access",
        "check the index's credentials (netrc, or in MODELYARD_INDEX_URL) and the proxy's",
    ),
    (
        ("error sending request", "failed to fetch", "dns error", "connect", "timed out", "timeout", "request failed"),
        "the package index is out of reach",
        "check the network, or name a mirror in MODELYARD_INDEX_URL (or wheels in MODELYARD_FIND_LINKS)",
    ),
    (
        ("not found in the package registry", "no version of", "no versions of", "no matching", "only the following"),
        "the package index has no such version",
        "the index may be a partial mirror: name another one in MODELYARD_EXTRA_INDEX_URL",
    ),
)

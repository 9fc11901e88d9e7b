"""The package client: how uv is found, and how our index settings reach it. The one place that knows uv's variables."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from modelyard.errors import EnvironmentFailed
from modelyard.settings import PackageIndex

# Read by settings.load, or set below: an inherited one must not contradict what the settings decided.
_REPLACED = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_OFFLINE",
)
# An activated venv, or a project's environment, is where uv would install if it saw one of these.
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
    UV_INDEX_*_PASSWORD, netrc) pass through from `base`. The extra indexes come before the default one and the first
    that knows a package wins: uv's protection against a stranger's package of the same name on a public index."""
    env = {name: value for name, value in base.items() if name not in _REPLACED and name not in _MISLEADING}
    if index.index_url:
        env["UV_DEFAULT_INDEX"] = index.index_url
    if extra := (*base.get("UV_INDEX", "").split(), *index.extra_index_urls):
        env["UV_INDEX"] = " ".join(extra)
    if index.find_links:
        env["UV_FIND_LINKS"] = ",".join(index.find_links)
    if index.certificate:
        env["SSL_CERT_FILE"] = index.certificate
    if index.offline:
        env["UV_OFFLINE"] = "1"
    env["UV_NO_PROGRESS"] = "1"
    env["UV_PYTHON_DOWNLOADS"] = "never"
    return env

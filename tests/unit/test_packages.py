"""Index settings reach uv in uv's own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.packages import explain_uv_failure, masked, uv_command, uv_environ
from modelyard.settings import PackageIndex, load


def test_every_index_setting_becomes_the_variable_that_uv_reads() -> None:
    index = PackageIndex(
        index_url="https://mirror.invalid/simple",
        extra_index_urls=("https://a.invalid/simple", "https://b.invalid/simple"),
        find_links=("/wheels", "https://c.invalid/wheels"),
        certificate="/etc/ca.pem",
        offline=True,
    )
    env = uv_environ(index, {})
    assert env["UV_DEFAULT_INDEX"] == "https://mirror.invalid/simple"
    assert env["UV_INDEX"] == "https://a.invalid/simple https://b.invalid/simple"
    assert env["UV_FIND_LINKS"] == "/wheels,https://c.invalid/wheels"
    assert env["SSL_CERT_FILE"] == "/etc/ca.pem"
    assert env["UV_OFFLINE"] == "1"


def test_what_pip_users_have_set_is_honoured() -> None:
    pip = {
        "PIP_INDEX_URL": "https://pip.invalid/simple",
        "PIP_EXTRA_INDEX_URL": "https://x.invalid https://y.invalid",
        "PIP_FIND_LINKS": "/opt/w",
    }
    settings = load(pip)
    env = uv_environ(settings.index, settings.environ)
    assert env["UV_DEFAULT_INDEX"] == "https://pip.invalid/simple"
    assert env["UV_INDEX"] == "https://x.invalid https://y.invalid"
    assert env["UV_FIND_LINKS"] == "/opt/w"


def test_an_inherited_variable_never_contradicts_the_settings() -> None:
    inherited = {"UV_INDEX_URL": "https://old.invalid", "UV_OFFLINE": "1", "VIRTUAL_ENV": "/elsewhere", "HOME": "/h"}
    env = uv_environ(PackageIndex(index_url="https://new.invalid"), inherited)
    assert env["UV_DEFAULT_INDEX"] == "https://new.invalid"
    assert env["HOME"] == "/h"
    assert not {"UV_INDEX_URL", "UV_OFFLINE", "VIRTUAL_ENV"} & env.keys()


def test_proxies_credentials_and_named_indexes_pass_through() -> None:
    base = {"HTTPS_PROXY": "http://proxy.invalid:3128", "UV_INDEX": "corp=https://corp.invalid/simple"}
    env = uv_environ(PackageIndex(extra_index_urls=("https://a.invalid",)), base)
    assert env["HTTPS_PROXY"] == "http://proxy.invalid:3128"
    assert env["UV_INDEX"] == "corp=https://corp.invalid/simple https://a.invalid"


def test_uv_stands_beside_modelyard() -> None:
    assert Path(uv_command()[0]).is_file()


@pytest.mark.parametrize(
    ("stderr", "cause", "hint"),
    [
        ("error: Failed to fetch: `https://x`\n  cause: tcp connect error", "out of reach", "MODELYARD_INDEX_URL"),
        ("hint: Packages were unavailable because the network was disabled.", "network is off", "FIND_LINKS"),
        ("  cause: Because there is no version of a==9 and you require a==9", "no such version", "EXTRA_INDEX"),
        ("  cause: Because a was not found in the package registry and", "no such version", "EXTRA_INDEX"),
        ("error: failed to write\n  cause: No space left on device (os error 28)", "disk is full", "MODELYARD_STATE"),
        ("  cause: invalid peer certificate: UnknownIssuer", "certificate", "MODELYARD_CA_FILE"),
        ("  cause: HTTP status client error (401 Unauthorized)", "refuses access", "credentials"),
        ("something new", "package client failed", "own words"),
    ],
)
def test_the_package_clients_failures_become_a_cause_and_a_hint(stderr: str, cause: str, hint: str) -> None:
    found_cause, found_hint = explain_uv_failure(stderr)
    assert cause in found_cause.splitlines()[0]
    assert found_cause.splitlines()[-1] == f"  uv: {stderr.strip().splitlines()[-1]}"
    assert hint in found_hint


SECRET = "p4ss/w0rd"
TELLING = PackageIndex(
    index_url=f"https://user:{SECRET}@mirror.invalid/simple",
    extra_index_urls=("https://t0ken@extra.invalid/simple",),
    find_links=("https://user:l%40nk@links.invalid/", "/wheels"),
)
PROXY = {"HTTPS_PROXY": "http://me:pr0xypass@proxy.invalid:3128", "UV_INDEX_CORP_PASSWORD": "c0rppass"}


@pytest.mark.parametrize(
    "said",
    [
        f"Failed to fetch: `https://user:{SECRET}@mirror.invalid/simple/numpy/`",
        "Failed to fetch: `https://t0ken@extra.invalid/simple/numpy/`",
        f"the password {SECRET} was refused",
        "the password l%40nk, that is l@nk, was refused",
        "proxy http://me:pr0xypass@proxy.invalid:3128 closed the connection",
        "basic auth c0rppass failed",
        "redirected to https://other:un7old@elsewhere.invalid/x",
    ],
)
def test_no_credential_is_repeated(said: str) -> None:
    shown = masked(said, TELLING, PROXY)
    secrets = (SECRET, "t0ken", "l%40nk", "l@nk", "pr0xypass", "c0rppass", "un7old")
    assert [secret for secret in secrets if secret in shown] == []
    assert "***" in shown


def test_what_is_no_credential_stays_readable() -> None:
    said = "error: Failed to fetch: `https://mirror.invalid/simple/numpy/`\n  a@b.invalid wrote numpy==2.4.6"
    assert masked(said, TELLING, PROXY) == said


def test_settings_that_are_printed_show_no_address() -> None:
    assert SECRET not in repr(TELLING) and "t0ken" not in repr(TELLING) and "invalid" not in repr(TELLING)

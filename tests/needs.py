"""What a test needs from outside Python. Missing, it is a reason to skip, but on CI, which installs it, a failure."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def needs_program(name: str, *, package: str = "") -> str:
    """The path of a program, looked for in PATH and where system programs lie; `package` is Debian's name for it."""
    folders = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS))
    if path := shutil.which(name, path=folders):
        return path
    missing(f"{name} is not installed (Debian: apt-get install {package or name})")


def missing(reason: str) -> NoReturn:
    """Skip with `reason`, or fail where MODELYARD_CI says that nothing may be missing."""
    if os.environ.get("MODELYARD_CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def wants_program(name: str, *, package: str = "") -> str:
    """Like `needs_program` for what few machines have (another shell, a service manager): absent, it is a reason to
    skip everywhere, also on CI."""
    folders = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS))
    if path := shutil.which(name, path=folders):
        return path
    pytest.skip(f"{name} is not installed (Debian: apt-get install {package or name})")

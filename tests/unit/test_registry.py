"""Engines are found by name, and only then imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from modelyard.engines.registry import engine, engines
from modelyard.errors import UsageError


def test_every_engine_is_found_by_its_own_name() -> None:
    assert [engine(one.name).name for one in engines()] == [one.name for one in engines()]
    assert engines()[0].name == "openvino"


def test_an_unknown_engine_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="openvine") as caught:
        engine("openvine")
    assert "openvino" in caught.value.hint


def test_naming_one_engine_imports_no_other() -> None:
    code = (
        "import sys; from modelyard.engines.registry import engine; engine('fake');"
        " sys.exit('modelyard.engines.openvino' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("adapter", engines(), ids=lambda adapter: adapter.name)
def test_an_environment_is_pinned_to_exact_versions(adapter: object) -> None:
    requirements = engine(adapter.name).requirements  # type: ignore[attr-defined]
    assert [package for package in requirements.packages if "==" not in package] == []
    assert (requirements.installed_bytes > 0) == bool(requirements.packages)

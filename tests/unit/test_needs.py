"""What happens where a tool from outside Python is missing."""

from __future__ import annotations

import pytest

from needs import needs_program


def test_a_missing_program_is_a_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELYARD_CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install nothing-like-it"):
        needs_program("nothing-like-it")


def test_on_ci_a_missing_program_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_CI", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install the-package"):
        needs_program("nothing-like-it", package="the-package")


def test_a_program_is_found_where_system_programs_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert needs_program("ldconfig").endswith("/ldconfig")

"""Where settings come from, and which of two wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard import settings
from modelyard.errors import UsageError


def pip_conf(folder: Path, text: str) -> str:
    file = folder / "pip.conf"
    file.write_text(text)
    return str(file)


def only(file: str, **more: str) -> dict[str, str]:
    """An environment in which no other file of pip's can be found but the machine's own."""
    return {"HOME": "/nonexistent", "XDG_CONFIG_DIRS": "/nonexistent", "PIP_CONFIG_FILE": file, **more}


def test_what_stands_in_pips_files_holds_for_our_environments_too(tmp_path: Path) -> None:
    file = pip_conf(tmp_path, "[global]\nindex-url = https://mirror.example/simple\ncert = /etc/ca.pem\n")
    index = settings.load(only(file)).index
    assert index.index_url == "https://mirror.example/simple"
    assert index.certificate == "/etc/ca.pem"


def test_the_section_for_installing_wins_over_the_general_one(tmp_path: Path) -> None:
    file = pip_conf(tmp_path, "[install]\nfind-links = /b\n[global]\nfind-links = /a\n")
    assert settings.load(only(file)).index.find_links == ("/b",)


def test_a_variable_wins_over_a_file_and_ours_over_pips(tmp_path: Path) -> None:
    file = pip_conf(tmp_path, "[global]\nindex-url = https://file.example/simple\n")
    assert settings.load(only(file, PIP_INDEX_URL="https://pip.example")).index.index_url == "https://pip.example"
    both = only(file, PIP_INDEX_URL="https://pip.example", MODELYARD_INDEX_URL="https://ours.example")
    assert settings.load(both).index.index_url == "https://ours.example"


def test_pips_extra_indexes_are_equal_and_uvs_are_asked_in_order(tmp_path: Path) -> None:
    file = pip_conf(tmp_path, "[global]\nextra-index-url =\n    https://a.example\n    https://b.example\n")
    of_pip = settings.load(only(file)).index
    assert of_pip.extra_index_urls == ("https://a.example", "https://b.example")
    assert of_pip.indexes_are_equal
    of_uv = settings.load(only(file, UV_EXTRA_INDEX_URL="https://c.example")).index
    assert of_uv.extra_index_urls == ("https://c.example",)
    assert not of_uv.indexes_are_equal


def test_a_file_that_is_no_configuration_is_passed_over(tmp_path: Path) -> None:
    assert settings.load(only(pip_conf(tmp_path, "index-url without a section"))).index.index_url == ""


def test_pips_files_can_be_switched_off_as_for_pip_itself(tmp_path: Path) -> None:
    pip_conf(tmp_path, "[global]\nindex-url = https://file.example/simple\n")
    found = settings.load(
        {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path.parent), "PIP_CONFIG_FILE": "/dev/null"}
    )
    assert found.index == settings.PackageIndex(indexes_are_equal=True)


@pytest.mark.parametrize("text", ["abc", "nan", "-1", "0", "inf"])
def test_a_lease_that_makes_no_sense_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="MODELYARD_LEASE_S"):
        settings.load({"MODELYARD_LEASE_S": text})

"""What is served when nothing is named, and what a person is told before it happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.cli.choosing import PACKAGED, Choice, Outlook, choose, outlook, took_file
from modelyard.engines.contract import Requirements

NEEDS = Requirements(
    packages=("tiny==1",), version="1", download_bytes=85_000_000, installed_bytes=264_000_000, import_check="tiny"
)


def look(*here: str, detached: bool = False) -> Outlook:
    return Outlook(
        command="./yard",
        state="~/.local/state/modelyard",
        address="http://127.0.0.1:8000/v1, for this machine only",
        engine="tiny",
        requirements=NEEDS,
        entry=PACKAGED,
        here=here,
        detached=detached,
    )


def test_what_is_named_is_taken(tmp_path: Path) -> None:
    (tmp_path / "modelyard.yaml").touch()
    assert choose("smollm2", tmp_path) == Choice("smollm2", named=True)


@pytest.mark.parametrize("name", ["modelyard.yaml", "modelyard.yml"])
def test_a_deployment_file_of_the_folder_says_what_is_wanted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "other.yaml").touch()
    (tmp_path / "model.gguf").touch()
    chosen = choose(None, tmp_path)
    assert chosen == Choice(name, named=False) and chosen.is_file
    assert took_file(chosen, 2, "./yard") == (
        f"taking ./{name}: 2 deployments (the packaged model instead: `./yard up smollm2`)"
    )


def test_else_it_is_the_packaged_model_and_models_nearby_are_seen(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "modelyard.yaml").mkdir()
    assert choose(None, tmp_path) == Choice("smollm2", named=False, nearby=("a.gguf", "b.gguf"))


def test_a_person_is_told_what_comes_how_large_where_to_and_how_it_is_undone() -> None:
    text = "\n".join(outlook(look(), ()))
    for part in (
        PACKAGED.summary,
        "the model 89 MiB and the engine tiny 81 MiB; 346 MiB on disk",
        "~/.local/state/modelyard",
        "http://127.0.0.1:8000/v1, for this machine only",
        "Ctrl-C stops it",
        "`./yard down --purge` removes everything again",
    ):
        assert part in text


def test_what_is_here_is_not_announced_as_fetched() -> None:
    assert "fetches    the engine tiny 81 MiB; 252 MiB" in "\n".join(outlook(look("smollm2"), ()))
    whole = "\n".join(outlook(look("smollm2", "tiny", detached=True), ()))
    assert "fetches" not in whole and "`./yard down` stops it" in whole


def test_models_nearby_are_offered() -> None:
    few = outlook(look(), ("a.gguf",))[-1]
    assert few == "  also here  ./a.gguf: `./yard up ./a.gguf` serves it instead"
    many = outlook(look(), ("a.gguf", "b.gguf", "c.gguf", "d.gguf", "e.gguf"))[-1]
    assert "./a.gguf, ./b.gguf, ./c.gguf and 2 more" in many

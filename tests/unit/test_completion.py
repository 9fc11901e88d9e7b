"""What a shell completes: the scripts are given to real shells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from modelyard.cli.app import app
from modelyard.cli.completion import NAMES, SCRIPTS, Shell, tree
from modelyard.cli.names import KINDS, names
from needs import needs_program, wants_program

VERBS = {verb.words: verb for verb in tree(typer.main.get_command(app))}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory with two deployments, and `modelyard` in PATH."""
    (tmp_path / "state" / "deployments").mkdir(parents=True)
    for name in ("assistant", "small"):
        (tmp_path / "state" / "deployments" / f"{name}.json").touch()
    program = tmp_path / "bin" / "modelyard"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m modelyard "$@"\n')
    program.chmod(0o755)
    (tmp_path / "yard").symlink_to(program)
    monkeypatch.setenv("MODELYARD_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_name_that_is_completed_is_of_a_parameter_that_exists() -> None:
    found = {
        (" ".join(verb.words), kind)
        for verb in VERBS.values()
        for kind in (verb.names, *(option.names for option in verb.options))
        if kind
    }
    assert found == {(verb, kind) for (verb, _), kind in NAMES.items()}
    assert set(NAMES.values()) <= set(KINDS)


def test_names_are_read_where_they_lie_and_nothing_is_made_for_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "my.gguf").touch()
    assert names("deployments") == ["assistant", "small"]
    assert "openvino" in names("engines")
    assert {"smollm2", "my.gguf"} <= set(names("models"))
    assert names("unicorns") == []
    monkeypatch.setenv("MODELYARD_STATE", str(home / "nowhere"))
    assert names("deployments") == []
    assert not (home / "nowhere").exists()


def test_asking_for_names_imports_no_command_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "modelyard", "completion", "names", "deployments"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not [line for line in ended.stderr.splitlines() if line.endswith(("typer", "rich", "aiohttp"))]


# What is typed, where the cursor is at its end -> some of what is offered, and something that is not.
TYPED = [
    ("modelyard st", {"status"}, "up"),
    ("modelyard keys ", {"create", "list", "revoke"}, "status"),
    ("modelyard chat ", {"assistant", "small"}, "--system"),
    ("modelyard chat --t", {"--temperature"}, "--system"),
    ("modelyard chat small --", {"--message", "--system"}, "small"),
    ("modelyard up --engine ", {"openvino"}, "smollm2"),
    ("modelyard up smo", {"smollm2"}, "small"),
    ("modelyard keys create ada --deployment a", {"assistant"}, "small"),
    ("./yard chat sm", {"small"}, "assistant"),
]


@pytest.mark.parametrize(("line", "offered", "not_offered"), TYPED, ids=[line for line, *_ in TYPED])
def test_bash_completes(line: str, offered: set[str], not_offered: str, home: Path) -> None:
    bash = needs_program("bash")
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"""{SCRIPTS[Shell.bash](list(VERBS.values()))}
COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _modelyard; printf '%s\\n' "${{COMPREPLY[@]}}" """
    ended = subprocess.run([bash, "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    found = set(ended.stdout.split())
    assert offered <= found and not_offered not in found


@pytest.mark.parametrize(("line", "offered", "not_offered"), TYPED, ids=[line for line, *_ in TYPED])
def test_fish_completes(line: str, offered: set[str], not_offered: str, home: Path) -> None:
    fish = wants_program("fish")
    script = f"{SCRIPTS[Shell.fish](list(VERBS.values()))}\ncomplete -C '{line}'"
    ended = subprocess.run([fish, "--no-config", "-c", script], capture_output=True, text=True, check=True)
    found = {one.split("\t")[0] for one in ended.stdout.splitlines()}
    assert offered <= found and not_offered not in found


def test_zsh_reads_its_script() -> None:
    zsh = wants_program("zsh")
    script = SCRIPTS[Shell.zsh](list(VERBS.values()))
    ended = subprocess.run([zsh, "-n"], input=script, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("shell", Shell)
def test_the_verb_prints_the_script(shell: Shell, home: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "modelyard", "completion", shell.value], capture_output=True, text=True, check=True
    )
    assert ended.stdout == SCRIPTS[shell](list(VERBS.values())) + "\n"

"""What the repository promises around the code: locks that fit, documents that agree with the source, no host named."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import modelyard
from modelyard import errors
from modelyard.cli.app import app

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
VERBS = set(typer.main.get_group(app).commands)
VERBS_OF_THE_SCRIPT = {"test", "dev", "help"}


def normalised(requirement: str) -> str:
    """The name at the start of a requirement, as indexes compare names."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> (version, hashes) of a lock file."""
    packages: dict[str, tuple[str, list[str]]] = {}
    current: list[str] = []
    for line in (ROOT / name).read_text().splitlines():
        if pin := re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", line):
            current = []
            packages[normalised(pin[1])] = (pin[2], current)
        elif found := re.match(r"\s+--hash=sha256:([0-9a-f]{64})", line):
            current.append(found[1])
        else:
            assert not line or line.startswith("#"), f"{name} holds something else: {line}"
    return packages


def at_least(version: str, requirement: str) -> bool:
    """Whether `version` meets `requirement`, whose one operator is `>=` (plain release numbers)."""
    bound = re.search(r">=([0-9.]+)$", requirement)
    if bound is None:
        return True
    return numbers(version) >= numbers(bound[1])


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


WANTED = {
    "requirements.lock": PROJECT["project"]["dependencies"],
    "requirements-dev.lock": [
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["dev"],
    ],
    "requirements-build.lock": PROJECT["build-system"]["requires"],
}


@pytest.mark.parametrize("name", WANTED)
def test_every_direct_dependency_is_locked_at_a_version_that_fits(name: str) -> None:
    packages = locked(name)
    assert WANTED[name]
    for requirement in WANTED[name]:
        assert normalised(requirement) in packages, f"{requirement}: run .ci/lock"
        version, _ = packages[normalised(requirement)]
        assert at_least(version, requirement), f"{name} has {version}, wanted {requirement}: run .ci/lock"


@pytest.mark.parametrize("name", WANTED)
def test_every_locked_package_has_hashes(name: str) -> None:
    assert [package for package, (_, hashes) in locked(name).items() if not hashes] == []


def test_the_locks_agree_on_every_version_that_they_share() -> None:
    versions: dict[str, set[str]] = {}
    for name in WANTED:
        for package, (version, _) in locked(name).items():
            versions.setdefault(package, set()).add(version)
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


def test_the_runtime_lock_holds_no_development_tool() -> None:
    tools = {normalised(each) for each in PROJECT["project"]["optional-dependencies"]["dev"]}
    assert tools & set(locked("requirements.lock")) == set()


def project_files() -> list[Path]:
    """What git tracks, or what lies there where this is no checkout."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if ".venv" not in path.parts and ".git" not in path.parts]
    return [path for path in paths if path.is_file()]


# Spelled so that this file does not hold what it looks for.
UNWANTED = {
    "a registry's host": r"\b(?:py" + r"pi\.(?:org|python)|pythonhosted\.|registry\.npm" + r"js|deb\." + r"debian\.)",
    "a path of somebody's machine": r"(?<![\w.])/(?:home/\w+|root|Users/\w+|work)/[\w.]",
}


@pytest.mark.parametrize("what", UNWANTED)
def test_no_file_names(what: str) -> None:
    pattern = re.compile(UNWANTED[what].encode())
    files = project_files()
    assert len(files) > 20
    assert [str(path.relative_to(ROOT)) for path in files if pattern.search(path.read_bytes())] == []


def test_the_version_has_its_entry_in_the_changelog() -> None:
    assert re.search(rf"^## \[{re.escape(modelyard.__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def links(document: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            yield target.partition("#")[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(document: Path) -> None:
    assert [target for target in links(document) if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_call_only_commands_that_exist(document: Path) -> None:
    called = set(re.findall(r"(?:\./yard|`modelyard) ([a-z]+)", document.read_text()))
    assert called <= VERBS | VERBS_OF_THE_SCRIPT


def test_the_script_explains_every_command() -> None:
    explained = subprocess.run([ROOT / "yard", "help"], capture_output=True, text=True, check=True).stdout
    assert {verb for verb in VERBS if not re.search(rf"\b{verb}\b", explained)} == set()


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    table = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "quickstart.md").read_text(), re.MULTILINE)
    assert {int(code) for code in table} == {0, 130, *(kind.exit_code for kind in kinds)}


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_says_context_decision_and_consequence(decision: Path) -> None:
    headings = re.findall(r"^## (.+)$", decision.read_text(), re.MULTILINE)
    assert [heading for heading in ("Context", "Decision", "Consequence") if heading not in headings] == []


def test_decisions_are_numbered_without_a_gap() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    assert DECISIONS


def test_every_dependency_has_its_reason_written_down() -> None:
    text = (ROOT / "docs" / "decisions" / "0002-dependencies.md").read_text()
    direct = {normalised(each) for wanted in WANTED.values() for each in wanted}
    assert {name for name in direct if f"`{name}`" not in text.lower()} == set()

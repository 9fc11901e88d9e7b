"""Every error that can end a command says what to try: read from the source, so that none is forgotten."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelyard
from modelyard import errors
from source_rules import Module, parse, read_package

MODULES = read_package(Path(modelyard.__file__).parent)
ROOT_OF_ERRORS = "ModelyardError"
# Makes a SpecError with file, line and key.
MAKERS = {"error"}

# Errors that end no command: where each is caught and becomes something with a remedy.
NEVER_SHOWN: dict[str, str] = {
    "UnreadableRecord": "whoever reads a record says what it means there that it is damaged",
    "WrongAnswer": "becomes a red check, whose fix the engine's adapter names",
    "Unreachable": "becomes a red check, or an end of the replica with its cause",
    "ShimLost": "the replica loop sees a launch that has ended",
}
# (module, function) -> why a hint would say nothing that the message does not.
WITHOUT: dict[tuple[str, str], str] = {}


def kinds() -> set[str]:
    """Names of every class below the root of our errors, wherever it is defined."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for module in MODULES.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {ROOT_OF_ERRORS}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


KINDS = kinds()


def made(module: Module) -> Iterator[tuple[str, ast.Call]]:
    """(innermost function, call) for each place that makes one of our errors."""

    def walk(node: ast.AST, inside: str) -> Iterator[tuple[str, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and name_of(child.func) in (KINDS - set(NEVER_SHOWN)) | MAKERS:
                yield inside, child
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from walk(child, child.name if named else inside)

    yield from walk(module.tree, "")


def name_of(called: ast.expr) -> str:
    if isinstance(called, ast.Name):
        return called.id
    # Only a document makes errors by a method of that name.
    return called.attr if isinstance(called, ast.Attribute) and name_of(called.value) == "document" else ""


def has_hint(call: ast.Call) -> bool:
    for keyword in call.keywords:
        if keyword.arg == "hint":
            return not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
    return False


def test_the_tree_of_errors_is_seen_whole() -> None:
    assert {kind.__name__ for kind in vars(errors).values() if isinstance(kind, type)} <= KINDS
    assert set(NEVER_SHOWN) <= KINDS
    places = [place for module in MODULES.values() for place in made(module)]
    assert len(places) > 50


def test_every_error_says_what_to_try() -> None:
    silent = [
        f"{name}:{call.lineno}: {ast.unparse(call)[:90]}"
        for name, module in MODULES.items()
        for function, call in made(module)
        if not has_hint(call) and (name, function) not in WITHOUT
    ]
    assert silent == []


def test_no_exception_to_the_rule_outlives_its_reason() -> None:
    without = {
        (name, function) for name, module in MODULES.items() for function, call in made(module) if not has_hint(call)
    }
    assert set(WITHOUT) - without == set()


@pytest.mark.parametrize(
    ("source", "has"),
    [
        ("UsageError('no', hint='yes')", True),
        ("UsageError('no', hint=_close(name))", True),
        ("UsageError('no', hint='')", False),
        ("UsageError('no')", False),
        ("document.error((), 'no')", False),
    ],
)
def test_a_missing_hint_is_recognised(source: str, has: bool) -> None:
    [(function, call)] = made(parse("modelyard.x", f"def f():\n    raise {source}"))
    assert (function, has_hint(call)) == ("f", has)

"""Rules about our own source, read with `ast`: what imports what, who reads the environment, who names an engine."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "modelyard"


@dataclass(frozen=True)
class Module:
    """One source file. `part` is the package below modelyard that it belongs to (or its own name, at the top)."""

    name: str
    is_package: bool
    tree: ast.Module

    @property
    def part(self) -> str:
        return part_of(self.name)


def part_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def parse(name: str, source: str, *, is_package: bool = False) -> Module:
    return Module(name, is_package, ast.parse(source))


def read_package(folder: Path) -> dict[str, Module]:
    """Every module below `folder` (the package's own), by dotted name."""
    modules: dict[str, Module] = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(folder).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules[name] = parse(name, path.read_text(), is_package=is_package)
    return modules


def imported_names(module: Module) -> Iterator[tuple[str, int]]:
    """Dotted names that the module imports anywhere: in functions and under TYPE_CHECKING too; with the line."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    up = node.level - 1 if module.is_package else node.level
    parts = module.name.split(".")
    return ".".join(filter(None, (*parts[: len(parts) - up], node.module)))


def import_graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports. `from package import name` counts as the submodule where there is one,
    otherwise as the package; the packages that a dotted import runs on its way are not counted."""
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, module in modules.items():
        for target, _ in imported_names(module):
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target != name:
                graph[name].add(target)
    return graph


def cycles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """One path per way back to a module that is still being followed."""
    found: list[list[str]] = []
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for target in sorted(graph[name]):
                follow(target, [*path, name])
            done.add(name)

    for name in sorted(graph):
        follow(name, [])
    return found


def foreign_imports(module: Module) -> set[str]:
    """Top-level names imported that are not ours."""
    return {name.split(".")[0] for name, _ in imported_names(module)} - {PACKAGE}


def environment_reads(module: Module) -> list[int]:
    """Lines that reach for the process environment through `os`."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    lines = [
        node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
        and node.attr in names
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    ]
    return lines + [line for name, line in imported_names(module) if name in {f"os.{found}" for found in names}]


def broad_handlers(module: Module) -> list[tuple[str, int]]:
    """(innermost function, line) of every handler that swallows whatever comes; one that ends in `raise` swallows
    nothing."""
    return [
        (function, node.lineno)
        for function, node in _in_functions(module.tree)
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _raises_again(node)
    ]


def _is_broad(kind: ast.expr | None) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(each is None or (isinstance(each, ast.Name) and each.id in BROAD) for each in kinds)


BROAD = {"Exception", "BaseException"}


def _raises_again(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise)


def _in_functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        yield inside, node
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _in_functions(node, node.name if named else inside)


def texts(module: Module) -> Iterator[tuple[str, int]]:
    """String literals (parts of f-strings too) that are not docstrings; with the line."""
    docstrings = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value, node.lineno


def word_matcher(words: Iterable[str]) -> Callable[[str], bool]:
    """Whether a text has one of the words standing alone: `tgi` is in "tgi-3" and not in "foretgift"."""
    pattern = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(map(re.escape, words))})(?![a-z0-9])", re.IGNORECASE)
    return lambda text: bool(pattern.search(text))


def calls_by_name(module: Module, names: set[str]) -> list[tuple[str, int]]:
    """Calls of plain names, such as the built-in `eval`."""
    return [
        (node.func.id, node.lineno)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]

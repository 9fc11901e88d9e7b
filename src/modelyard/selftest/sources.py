"""What a result speaks for: the row, everything that it imports, and the programs that it starts."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import modelyard
from modelyard.selftest.row import Row

PACKAGE = Path(modelyard.__file__).parent
# Only a checkout has it; so do only results of rows that are measured by it.
CHECKOUT = PACKAGE.parents[1]


def source_sha256(row: Row) -> str:
    """Hex SHA-256 over the names and bytes of every file that the result depends on."""
    digest = hashlib.sha256()
    for path in sorted(files_of(row)):
        name = path.relative_to(CHECKOUT) if path.is_relative_to(CHECKOUT) else path.name
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def files_of(row: Row) -> frozenset[Path]:
    """The row's own file and the files below what its `sources` name, with all of ours that they import, directly or
    not. Raises FileNotFoundError where a source is not there."""
    begun = [Path(inspect.getfile(row.run)), *(file for source in row.sources for file in _named(row, source))]
    found: set[Path] = set()
    while begun:
        if (path := begun.pop()) not in found:
            found.add(path)
            begun += _imported(path)
    return frozenset(found)


def _named(row: Row, source: str) -> Iterable[Path]:
    if source.startswith("benchmarks/"):
        return [path] if (path := CHECKOUT / source).exists() else []
    path = PACKAGE / source
    if not path.exists():
        raise FileNotFoundError(f"row {row.key} names a source that is not there: {source}")
    return path.rglob("*.py") if path.is_dir() else [path]


def _imported(path: Path) -> Iterator[Path]:
    """The files of ours that a file imports, inside functions too, but not for types alone."""
    return (file for name in _names_in(path) for file in _files(name))


@cache
def _names_in(path: Path) -> frozenset[str]:
    return frozenset(_names(ast.parse(path.read_bytes())))


def _names(tree: ast.AST) -> Iterator[str]:
    """Dotted names that imports may mean: of `from a import b` both `a` and `a.b`, for `b` may be a module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)
        yield from _names(node)


def _files(name: str) -> Iterator[Path]:
    """The module and the packages around it; nothing where it is not ours."""
    top, *rest = name.split(".")
    # Programs run by path, and find each other beside themselves.
    root = {"modelyard": PACKAGE, "benchmarks": CHECKOUT / "benchmarks"}.get(top, PACKAGE / "programs" / top)
    for count in range(len(rest) + 1):
        place = root.joinpath(*rest[:count])
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                yield path

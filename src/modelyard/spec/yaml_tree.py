"""YAML as plain values that remember their lines. Safe tags only; no aliases, no duplicate keys, bounded depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from modelyard.errors import SpecError

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 16

Steps = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """`value` is made of dicts, lists and scalars; `lines` maps the path of a value to the line of its key (from 1),
    `spans` that of a scalar to where it begins and ends in the text, in characters."""

    file: Path
    value: Any
    lines: dict[Steps, int]
    spans: dict[Steps, tuple[int, int]] = field(default_factory=dict[Steps, tuple[int, int]])

    def error(self, steps: Steps, message: str, *, hint: str = "") -> SpecError:
        """An error that names the file, the line and the key; a key that is absent takes the line of its parent."""
        known = steps
        while known and known not in self.lines:
            known = known[:-1]
        where = f"{self.file}:{self.lines.get(known, 1)}"
        return SpecError(message, where=f"{where}: {show(steps)}" if steps else where, hint=hint)


def show(steps: Steps) -> str:
    """`deployments[1].limits.kv_cache`"""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.removeprefix(".")


def read(file: Path) -> Document:
    """The one document in `file`. Raises SpecError for whatever is not plain YAML in UTF-8."""
    document = Document(file, None, {})
    try:
        loader = _Loader(_text(document))
    except yaml.YAMLError as error:
        raise _translated(document, error) from error
    try:
        node = loader.get_single_node()
        if node is None:
            raise document.error((), "the file is empty", hint="start with: apiVersion: modelyard/v1")
        value = _plain(document, loader, node, ())
    except yaml.YAMLError as error:
        raise _translated(document, error) from error
    finally:
        loader.dispose()
    return Document(file, value, document.lines, document.spans)


def _text(document: Document) -> str:
    try:
        with document.file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise document.error((), f"cannot be read: {error.strerror}", hint="check the path of the file") from error
    if len(data) > MAX_FILE_BYTES:
        hint = "name the file that was meant; several deployments fit into far less"
        raise document.error((), f"is larger than {MAX_FILE_BYTES} bytes: not a deployment file", hint=hint)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise document.error((), f"is not UTF-8 text (byte {error.start})", hint="save the file as UTF-8") from error


class _Refused(yaml.MarkedYAMLError):
    """Legal YAML that we do not take; `note` is the hint."""


class _Loader(yaml.SafeLoader):
    """Only composes: values are made by `_plain`, so no tag ever constructs anything but a scalar."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            note = "write the value out where it is used"
            raise _Refused(problem="aliases are not supported", problem_mark=self.get_mark(), note=note)
        if self.depth >= MAX_DEPTH:
            note = "a deployment file has three levels; look for brackets that nothing closes"
            raise _Refused(problem="is nested too deeply", problem_mark=self.get_mark(), note=note)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _plain(document: Document, loader: _Loader, node: yaml.Node, steps: Steps) -> Any:
    document.lines.setdefault(steps, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return {key: _plain(document, loader, value, (*steps, key)) for key, value in _pairs(document, node, steps)}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(document, loader, item, (*steps, at)) for at, item in enumerate(node.value)]
    document.spans[steps] = (node.start_mark.index, node.end_mark.index)
    try:
        return cast(Any, loader).construct_object(node)
    except ValueError as error:  # such as the date 2026-99-99
        raise document.error(steps, str(error), hint="put text in quotes") from error


def _pairs(document: Document, node: yaml.MappingNode, steps: Steps) -> Iterator[tuple[str, yaml.Node]]:
    seen: set[str] = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            document.lines.setdefault((*steps, "?"), line)
            raise document.error((*steps, "?"), "keys must be plain words", hint="write it as `key: value`")
        name = str(key.value)
        if name in seen:
            first = document.lines[*steps, name]
            document.lines[*steps, name] = line
            raise document.error((*steps, name), f"stands twice (first in line {first})", hint="keep one of them")
        seen.add(name)
        document.lines[*steps, name] = line
        yield name, value


def _translated(document: Document, error: yaml.YAMLError) -> SpecError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark else 1
    where = f"{document.file}:{line}"
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    if isinstance(error, _Refused):
        return SpecError(problem, where=where, hint=str(getattr(error, "note", None) or ""))
    if problem == "but found another document":
        hint = "list several deployments under `deployments:` in one document"
        return SpecError("holds more than one YAML document", where=where, hint=hint)
    return SpecError(f"is not valid YAML: {problem}", where=where, hint="check indentation and quotes around this line")

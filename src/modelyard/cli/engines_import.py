"""`modelyard engines import`: an existing command line becomes a deployment file."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from modelyard.cli.options import Json
from modelyard.cli.output import as_called, print_json, say
from modelyard.engines.command_lines import read_command
from modelyard.engines.importing import ImportedCommand, Taken, Value
from modelyard.errors import UsageError
from modelyard.spec.deployment import load
from modelyard.spec.wanted import API_VERSION
from modelyard.state import write_atomically

_PLAIN = re.compile(r"[A-Za-z0-9_./~][A-Za-z0-9_./~:@+-]*")
_WORDS_OF_YAML = frozenset({"true", "false", "yes", "no", "on", "off", "null", "~"})


def import_command(
    command: Annotated[list[str], typer.Argument(help="The command line, in quotes; - reads it from standard input.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the file here, not to the screen.")
    ] = None,
    json: Json = False,
) -> None:
    """Turn the command line of vllm serve, llama-server or their docker run into a deployment file.

    Every flag becomes a key, or stands in a comment with the reason why not. Secrets are never copied.
    """
    line = sys.stdin.read() if command == ["-"] else " ".join(command) if len(command) == 1 else _joined(command)
    found = read_command(line)
    if json:
        print_json(found)
        return
    text = deployment_file(found)
    if output is None:
        say(text.rstrip("\n"))
        return
    if output.exists():
        raise UsageError(f"{output} is there already", hint="name another file, or remove it")
    try:
        write_atomically(output.absolute(), text.encode(), mode=0o644)
    except OSError as error:
        raise UsageError(
            f"{output} cannot be written: {error.strerror}", hint="name a file that you may write"
        ) from error
    load(output)
    left = len(found.not_taken)
    rest = f"; {left} flag{' was' if left == 1 else 's were'} not taken over, the file says why" if left else ""
    say(f"{output}: {len(found.taken)} values{rest}")
    say(as_called(f"next: modelyard plan {output}"))


def _joined(words: Sequence[str]) -> str:
    import shlex

    return shlex.join(words)


def deployment_file(found: ImportedCommand) -> str:
    """The text of a deployment file, with where each value came from, and what could not be taken."""
    lines = [
        f"apiVersion: {API_VERSION}",
        f"name: {_scalar(found.name)}",
        f"model: {_scalar(found.model)}",
        f"engine: {_scalar(found.engine)}",
        *_sections(found.taken),
    ]
    if found.not_taken:
        lines += ["", "# Not taken over:"]
        lines += [f"#   {_one_line(one.said)}: {one.reason}" for one in found.not_taken]
    return "\n".join(lines) + "\n"


def _sections(taken: Sequence[Taken]) -> list[str]:
    """`limits.context_tokens` stands under `limits:`, two levels for `gateway.tls.cert`."""
    lines: list[str] = []
    open_keys: list[str] = []
    for one in sorted(taken, key=lambda one: [part for part in one.key.split(".")]):
        *parents, last = one.key.split(".")
        for depth, parent in enumerate(parents):
            if open_keys[depth : depth + 1] != [parent]:
                open_keys[depth:] = [parent]
                lines.append(f"{'  ' * depth}{parent}:")
        open_keys[len(parents) :] = []
        lines.append(f"{'  ' * len(parents)}{_scalar(last)}: {_scalar(one.value)}  # {_one_line(one.flag)}")
    return lines


def _scalar(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_YAML and not value[:1].isdigit()
    return value if plain and not value.endswith(":") else json.dumps(value, ensure_ascii=not value.isprintable())


def _one_line(text: str) -> str:
    """In a comment: whatever it holds, it stays in its line."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


__all__ = ["deployment_file", "import_command"]

"""Reading what a person types: line editing and history where the terminal has them, messages of several lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable

PROMPT, MORE = "> ", ". "
QUOTES = '"""'
# Asked for one line with a prompt; raises EOFError at the end of input.
ReadLine = Callable[[str], str]


def read_message(read_line: ReadLine = input) -> str:
    """One message: a line; or lines that end with a backslash and the one after; or everything between triple quotes.

    A paste of several lines comes as one line that holds line breaks, where the terminal marks pastes (readline 8.1).
    Raises EOFError where there is no more."""
    line = read_line(PROMPT)
    if line.lstrip().startswith(QUOTES):
        return _quoted(line.lstrip().removeprefix(QUOTES), read_line)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read_line(MORE))
    return "\n".join(lines)


def _quoted(line: str, read_line: ReadLine) -> str:
    lines = [line]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(read_line(MORE))
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip("\n")


def edit_lines(words: Iterable[str]) -> None:
    """Make `input` edit its line, remember those before it and complete `words` at the beginning of one.

    What was typed is remembered until the program ends and written nowhere: it is a prompt."""
    with contextlib.suppress(ImportError):
        # Some builds of Python have none; then lines are plain.
        import readline

        known = sorted(words)

        def complete(text: str, state: int) -> str | None:
            begun = readline.get_line_buffer()
            found = [word for word in known if begun == text and word.startswith(text)] if text else []
            return found[state] if state < len(found) else None

        readline.set_completer_delims(" \t\n")
        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")


def read_piped() -> str:
    """Everything that is piped in, as one message."""
    return sys.stdin.buffer.read().decode("utf-8", "replace").strip()

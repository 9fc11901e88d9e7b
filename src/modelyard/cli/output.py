"""What commands print: words for people on a terminal, JSON where it is asked for."""

from __future__ import annotations

import msgspec
from rich.console import Console

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    OUT.print(text, markup=False)


def print_json(value: object) -> None:
    """One JSON value on standard output, indented; records become objects."""
    OUT.print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode(), markup=False)


def complain(message: str, hint: str = "") -> None:
    """An error in plain words: what happened, and what to try."""
    ERR.print(f"[red]error:[/red] {_escape(message)}")
    if hint:
        ERR.print(f"[dim]try:[/dim]   {_escape(hint)}")


def _escape(text: str) -> str:
    return text.replace("[", r"\[")

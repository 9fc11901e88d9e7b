"""What commands print: words for people on a terminal, JSON where it is asked for."""

from __future__ import annotations

import re
import sys

import msgspec
from rich.console import Console
from rich.table import Table

from modelyard import settings
from modelyard.cli.visible import visible

WIDE_COLUMNS = 250
# A log may hold `:smile:` and JSON may hold `:1:`: what is printed is what was said.
# Where nobody looks, rows are not folded to a screen's width: `| grep` reads lines.
OUT = Console(highlight=False, soft_wrap=True, emoji=False, width=None if sys.stdout.isatty() else WIDE_COLUMNS)
ERR = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_COMMAND = re.compile(
    r"\bmodelyard (?=audit|chat|completion|debug|doctor|down|engines|explain|gateway|keys|logs|models|plan|replay"
    r"|restart|schema|selftest|service|status|teams|up|usage|verify|version|--help)"
)
# What JSON leaves as it is and some terminals take for commands.
_JSON_CONTROL = re.compile(r"[\x7f-\x9f]")

_WIDE = 200


def say(text: str) -> None:
    OUT.print(visible(text), markup=False)


def say_line(text: str) -> None:
    """One line of JSON, as it is: for those who follow and pipe."""
    OUT.print(_escaped(text), markup=False)


def as_called(text: str) -> str:
    """`text` with our command as the user types it: `./yard up` of a checkout is no `modelyard up`."""
    return _COMMAND.sub(lambda _: f"{settings.load().command} ", text)


def tilde(path: str) -> str:
    """A path as people write it: what lies in their home begins with `~`."""
    home = settings.load().environ.get("HOME", "").rstrip("/")
    return f"~{path.removeprefix(home)}" if home and path.startswith(f"{home}/") else path


def print_table(table: Table) -> None:
    """Where no terminal gives a width to fit into, each row is a line."""
    if not OUT.is_terminal:
        OUT.width = max(OUT.width, _WIDE)
    OUT.print(table)


def print_json(value: object) -> None:
    """One JSON value on standard output, indented; records become objects."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    OUT.print(_escaped(text), markup=False)


def _escaped(json: str) -> str:
    return _JSON_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json)


def complain(message: str, hint: str = "") -> None:
    """An error in plain words: what happened, and what to try."""
    ERR.print(f"[red]error:[/red] {_escape(message)}")
    if hint:
        # Lines of a longer hint stand under each other.
        ERR.print(f"[dim]try:[/dim]   {_escape(as_called(hint)).replace(chr(10), chr(10) + ' ' * 7)}")


def _escape(text: str) -> str:
    return visible(text).replace("[", r"\[")

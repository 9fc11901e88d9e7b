"""Mistakes in what was typed, said in our way: what is wrong, what was probably meant, where to read on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from typer.exceptions import TyperException

_GUESSES = re.compile(r" ?(?:\(Possible options: .*\)|Did you mean .*\?)$")
_UNKNOWN_VERB = re.compile(r"No such command '(.*)'\.")


def explained(error: TyperException) -> tuple[str, str]:
    """Message and hint. Typer knows the command that was under way where the error has a context."""
    context = getattr(error, "ctx", None)
    path = str(context.command_path) if context is not None else "modelyard"
    # Called by path, the program is named by its file.
    path = " ".join(["modelyard", *path.split()[1:]])
    message = _GUESSES.sub("", error.format_message())
    meant = _close_option(error) or _close_verb(message, context)
    hint = f"{path} --help"
    return message[:1].lower() + message[1:].rstrip("."), f"did you mean {meant}? {hint}" if meant else hint


def _close_option(error: TyperException) -> str:
    found: list[str] = list(getattr(error, "possibilities", None) or ())
    return _closest(str(getattr(error, "option_name", "")), found, cutoff=0.0)


def _close_verb(message: str, context: object) -> str:
    unknown = _UNKNOWN_VERB.fullmatch(message if message.endswith(".") else f"{message}.")
    command = getattr(context, "command", None)
    known: dict[str, object] = getattr(command, "commands", None) or {}
    if unknown is None or not known:
        return ""
    return _closest(unknown[1], known, cutoff=0.6)


def _closest(typed: str, known: Iterable[str], *, cutoff: float) -> str:
    return next(iter(difflib.get_close_matches(typed, list(known), n=1, cutoff=cutoff)), "")

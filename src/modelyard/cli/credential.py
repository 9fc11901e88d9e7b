"""Secrets of others, by reference: a command line is seen by every process of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from modelyard.errors import UsageError

_HINT = "env:NAME for a variable of the environment, or file:/path"


def secret_of(reference: str, environ: Mapping[str, str]) -> str:
    """What `env:NAME` or `file:/path` refers to. Raises UsageError, which never repeats a value."""
    kind, separator, where = reference.partition(":")
    if not separator or kind not in ("env", "file"):
        # It may well be the secret itself.
        raise UsageError("a provider's key is given by reference", hint=_HINT)
    if kind == "env":
        found = environ.get(where, "")
    else:
        try:
            found = Path(where).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the key in {where} cannot be read: {type(error).__name__}", hint=_HINT) from error
    secret = found.strip()
    if not secret:
        raise UsageError(f"there is no key in {reference}", hint=_HINT)
    if not (secret.isascii() and secret.isprintable()):
        raise UsageError(f"what {reference} holds cannot stand in a header", hint="one line of ASCII")
    return secret

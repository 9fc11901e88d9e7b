"""Reading other people's JSON: bounded, one object, no key twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeGuard

from modelyard.errors import ModelRefused

JsonObject = dict[str, object]

MAX_CONFIG_BYTES = 16 << 20


def read_json_object(path: Path, *, limit_bytes: int = MAX_CONFIG_BYTES) -> JsonObject:
    """The object in the file at `path`; raises ModelRefused where it is unreadable, too large or not one object."""
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise ModelRefused(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error
    if len(data) > limit_bytes:
        raise ModelRefused(
            f"{path} is larger than {limit_bytes} bytes", hint="a configuration file is never this large"
        )
    return parse_json_object(data, str(path))


def parse_json_object(data: bytes, name: str) -> JsonObject:
    """Errors call it `name`. Two readers of one file must not see two different values: a repeated key is refused."""
    try:
        value: object = json.loads(data, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelRefused(f"{name} is not proper JSON: {reason}", hint="the file is damaged: fetch it again") from None
    if not is_object(value):
        raise ModelRefused(f"{name} does not hold a JSON object", hint="the file is damaged: fetch it again")
    return value


def is_object(value: object) -> TypeGuard[JsonObject]:
    """What json.loads gives for an object: its keys are always strings."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)


def _distinct(pairs: list[tuple[str, object]]) -> JsonObject:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return result

"""The configuration file of an engine program: one strict JSON object, every key required and none beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, cast


class ConfigError(Exception):
    """The configuration file cannot be used; the message is one line that names the key."""


def read_object(path: str, keys: Iterable[str]) -> dict[str, Any]:
    """The object in `path` with exactly these keys. Raises ConfigError."""
    try:
        with open(path, encoding="utf-8") as file:
            raw: Any = json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    values, known = cast("dict[str, Any]", raw), set(keys)
    if unknown := sorted(values.keys() - known):
        raise ConfigError(f"unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    if missing := sorted(known - values.keys()):
        raise ConfigError(f"missing key {missing[0]!r}")
    return values


def check_texts(values: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if not isinstance(values[key], str) or not values[key]:
            raise ConfigError(f"{key} must be a non-empty string")


def check_integers(values: Mapping[str, Any], least: Mapping[str, int]) -> None:
    for key, minimum in least.items():
        if type(values[key]) is not int or values[key] < minimum:
            raise ConfigError(f"{key} must be an integer of at least {minimum}")


def check_numbers(values: Mapping[str, Any], most: Mapping[str, float]) -> None:
    for key, maximum in most.items():
        if type(values[key]) not in (int, float) or not 0 <= values[key] <= maximum:
            raise ConfigError(f"{key} must be a number from 0 to {maximum:g}")


def check_switches(values: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if type(values[key]) is not bool:
            raise ConfigError(f"{key} must be true or false")


def check_model(path: str) -> None:
    if not os.path.exists(path):
        raise ConfigError(f"model_path {path} does not exist")


def check_draft(values: Mapping[str, Any]) -> None:
    """`draft_model` is empty, or a file that guesses `speculative_tokens` at a time."""
    if not isinstance(values["draft_model"], str):
        raise ConfigError("draft_model must be a path, or empty")
    if values["draft_model"] and not values["speculative_tokens"]:
        raise ConfigError("draft_model guesses nothing while speculative_tokens is 0")
    if values["draft_model"] and not os.path.exists(values["draft_model"]):
        raise ConfigError(f"draft_model {values['draft_model']} does not exist")

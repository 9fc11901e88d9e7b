"""The examples are the reference: each must be valid, and the full one must show every key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from modelyard.spec.deployment import json_schema, load_file

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))


def keys_of(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every key of every object of the schema, except the free names below `settings`."""
    return {key: rule for part in schema["$defs"].values() for key, rule in part.get("properties", {}).items()}


def keys_in(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(keys_in, value))
    return set(value).union(*map(keys_in, value.values())) if isinstance(value, dict) else set()


def test_there_are_examples() -> None:
    assert {file.name for file in FILES} >= {"minimal.yaml", "full.yaml", "two-deployments.yaml", "own-gguf.yaml"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_example_loads_and_matches_the_exported_schema(file: Path) -> None:
    assert load_file(file).deployments
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(file.read_text()))


def test_the_full_example_mentions_every_key_of_the_schema() -> None:
    shown = keys_in(yaml.safe_load((EXAMPLES / "full.yaml").read_text()))
    assert set(keys_of(json_schema())) - shown == set()


def test_every_key_of_the_schema_has_a_description() -> None:
    assert [key for key, rule in keys_of(json_schema()).items() if not rule.get("description")] == []


def test_the_schema_is_plain_json_and_itself_valid() -> None:
    schema = json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("line", ["nmae: x", "name: A", "replicas: 0", "limits: {kv_cache: lots}"])
def test_the_schema_refuses_what_the_loader_refuses(line: str) -> None:
    value = {"apiVersion": "modelyard/v1", "name": "a", "model": "b", **yaml.safe_load(line)}
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(value)


def test_defaults_written_in_the_full_example_are_the_defaults() -> None:
    full = load_file(EXAMPLES / "full.yaml")
    minimal = load_file(EXAMPLES / "minimal.yaml").deployments[0]
    assert full.gateway.host == "127.0.0.1" and full.gateway.port == load_file(EXAMPLES / "minimal.yaml").gateway.port
    (shown,) = full.deployments
    assert (shown.timeouts.drain_s, shown.timeouts.hang_s) == (minimal.timeouts.drain_s, minimal.timeouts.hang_s)
    assert (shown.limits.max_queued, shown.unknown_fields) == (minimal.limits.max_queued, minimal.unknown_fields)

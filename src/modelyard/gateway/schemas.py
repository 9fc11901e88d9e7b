"""JSON Schemas of strangers. Engines compile them in native code, some of which has ended whole engines over a type
that does not exist or a pattern that is no text (CVE-2025-48944): what passes here is well-formed, and fetches nothing.
"""

from __future__ import annotations

from typing import Any, cast

from modelyard.gateway.limits import FIELDS
from modelyard.gateway.strict_json import children

_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_IN_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ALONE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_WIDEST = 2**63


def value_problem(value: Any, most_levels: int) -> str:
    """What is wrong with a value that may hold anything; empty where nothing is. Level by level: there is no recursion
    to exhaust."""
    levels, level = 0, [value]
    while level:
        levels += 1
        if levels > most_levels:
            return f"nests deeper than {most_levels} levels"
        for item in level:
            if type(item) is int and not -_WIDEST <= item < 2 * _WIDEST:
                return "holds a whole number of more than 64 bits"
            reference = cast("dict[str, Any]", item).get("$ref") if isinstance(item, dict) else None
            if isinstance(reference, str) and not reference.startswith("#"):
                return "holds a remote $ref"
        level = [child for item in level for child in children(item)]
    return ""


def schema_problem(schema: Any) -> str:
    """What is wrong with a JSON Schema whose depth is bounded already; empty where nothing is."""
    pending = [schema]
    while pending:
        item = pending.pop()
        if isinstance(item, bool):
            continue
        if not isinstance(item, dict):
            return "holds a schema that is no object"
        known = cast("dict[str, Any]", item)
        if problem := _kind_problem(known.get("type")) or _pattern_problem(known.get("pattern")):
            return problem
        for inner in _within(known):
            pending.extend(inner)
    return ""


def tools_problem(tools: list[dict[str, Any]]) -> str:
    """What is wrong with the parameters of tools; what a tool is beside that, engines say."""
    for tool in tools:
        function = tool.get("function", tool)
        parameters = cast("dict[str, Any]", function).get("parameters") if isinstance(function, dict) else None
        if parameters is not None and (problem := schema_problem(parameters)):
            return problem
    return ""


def _within(schema: dict[str, Any]) -> list[list[Any]]:
    """The schemas directly inside a schema; `items` may be a list of them in older drafts."""
    alone = [schema[name] for name in _ALONE if name in schema]
    found = [cast("list[Any]", inner) if isinstance(inner, list) else [inner] for inner in alone]
    found += [children(schema[name]) for name in (*_BY_NAME, *_IN_LISTS) if name in schema]
    return found


def _kind_problem(kind: Any) -> str:
    kinds = cast("list[Any]", kind) if isinstance(kind, list) else [] if kind is None else [kind]
    well = all(isinstance(one, str) and one in _TYPES for one in kinds)
    return "" if well else "holds a type that JSON Schema does not have"


def _pattern_problem(pattern: Any) -> str:
    if pattern is None or (isinstance(pattern, str) and len(pattern) <= FIELDS.pattern_characters):
        return ""
    return f"holds a pattern that is not a text of at most {FIELDS.pattern_characters} characters"

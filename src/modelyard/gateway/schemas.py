"""JSON Schemas of strangers. Engines compile them in native code, some of which has ended whole engines over a type
that does not exist or a pattern that is no text (CVE-2025-48944): what passes here is well-formed, and fetches nothing.

The keywords that engines compile are types, so that a schema of ten thousand parts is looked through in C."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from modelyard.gateway.limits import FIELDS

_WIDEST = 2**63
_Kind = Literal["array", "boolean", "integer", "null", "number", "object", "string"]
_Pattern = Annotated[str, Meta(max_length=FIELDS.pattern_characters)]


class _Schema(Struct):
    """The keywords that hold schemas, and two whose values are compiled. All others may hold anything."""

    type: _Kind | list[_Kind] | None = None
    pattern: _Pattern | None = None
    properties: _ByName | UnsetType = UNSET
    pattern_properties: _ByName | UnsetType = field(default=UNSET, name="patternProperties")
    defs: _ByName | UnsetType = field(default=UNSET, name="$defs")
    definitions: _ByName | UnsetType = UNSET
    dependent_schemas: _ByName | UnsetType = field(default=UNSET, name="dependentSchemas")
    any_of: _Listed | UnsetType = field(default=UNSET, name="anyOf")
    one_of: _Listed | UnsetType = field(default=UNSET, name="oneOf")
    all_of: _Listed | UnsetType = field(default=UNSET, name="allOf")
    prefix_items: _Listed | UnsetType = field(default=UNSET, name="prefixItems")
    # In older drafts a list of them.
    items: bool | _Schema | _Listed | UnsetType = UNSET
    additional_properties: bool | _Schema | UnsetType = field(default=UNSET, name="additionalProperties")
    not_: bool | _Schema | UnsetType = field(default=UNSET, name="not")
    if_: bool | _Schema | UnsetType = field(default=UNSET, name="if")
    then: bool | _Schema | UnsetType = UNSET
    else_: bool | _Schema | UnsetType = field(default=UNSET, name="else")
    contains: bool | _Schema | UnsetType = UNSET
    property_names: bool | _Schema | UnsetType = field(default=UNSET, name="propertyNames")


_ByName = dict[str, bool | _Schema]
_Listed = list[bool | _Schema]
_AnySchema = bool | _Schema
_PROBLEMS = {
    "type": "holds a type that JSON Schema does not have",
    "pattern": f"holds a pattern that is not a text of at most {FIELDS.pattern_characters} characters",
}


def value_problem(value: Any, most_levels: int) -> str:
    """What is wrong with a value that may hold anything; empty where nothing is. Level by level: there is no recursion
    to exhaust."""
    levels, level = 0, [value]
    while level:
        levels += 1
        if levels > most_levels:
            return f"nests deeper than {most_levels} levels"
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                continue
            if isinstance(item, dict):
                known = cast("dict[str, Any]", item)
                reference = known.get("$ref")
                if isinstance(reference, str) and not reference.startswith("#"):
                    return "holds a remote $ref"
                below += known.values()
            elif isinstance(item, list):
                below += cast("list[Any]", item)
            elif isinstance(item, int) and not -_WIDEST <= item < 2 * _WIDEST:
                return "holds a whole number of more than 64 bits"
        level = below
    return ""


def schema_problem(schema: Any) -> str:
    """What is wrong with a JSON Schema whose depth is bounded already; empty where nothing is."""
    try:
        msgspec.convert(schema, _AnySchema)
    except msgspec.ValidationError as error:
        # "Invalid enum value 'x' - at `$.items.type[0]`"
        keyword = str(error).removesuffix("`").rpartition(".")[2].partition("[")[0]
        return _PROBLEMS.get(keyword, "holds a schema that is no object")
    return ""


def tools_problem(tools: list[dict[str, Any]]) -> str:
    """What is wrong with the parameters of tools; what a tool is beside that, engines say."""
    for tool in tools:
        function = tool.get("function", tool)
        parameters = cast("dict[str, Any]", function).get("parameters") if isinstance(function, dict) else None
        if parameters is not None and (problem := schema_problem(parameters)):
            return problem
    return ""

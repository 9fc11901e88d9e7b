"""Whether a value is what a JSON schema asks for, as far as structured output uses schemas.

Understands type, enum, const, properties, required, additionalProperties, items, prefixItems, minItems, maxItems,
anyOf, oneOf (as anyOf), allOf and local $ref. Other keywords (pattern, format, ranges) are not judged: an engine whose
grammar knows less than a schema says is not called wrong here. Work is bounded; beyond the bound nothing is judged."""

from __future__ import annotations

from typing import Any, cast

MOST_STEPS = 20_000
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_Object = dict[str, Any]


class _TooMuch(Exception):
    pass


def breaks(value: Any, schema: Any) -> str:
    """Where `value` first departs from `schema`, as a path like `$.names[2]`; "" where it does not."""
    try:
        return _Judge(schema).judge(value, schema, "$")
    except (_TooMuch, RecursionError):
        return ""


class _Judge:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._steps = 0

    def judge(self, value: Any, schema: Any, at: str) -> str:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise _TooMuch
        if not isinstance(schema, dict):
            return at if schema is False else ""
        wanted = cast("_Object", schema)
        if isinstance(reference := wanted.get("$ref"), str):
            return self.judge(value, self._found(reference), at)
        if not _has_type(value, wanted.get("type")):
            return at
        if "const" in wanted and not _same(value, wanted["const"]):
            return at
        if isinstance(allowed := wanted.get("enum"), list) and not any(_same(value, one) for one in _list(allowed)):
            return at
        for name in ("anyOf", "oneOf"):
            if isinstance(ways := wanted.get(name), list) and all(self.judge(value, way, at) for way in _list(ways)):
                return at
        for part in _list(wanted.get("allOf")):
            if wrong := self.judge(value, part, at):
                return wrong
        if isinstance(value, dict):
            return self._object(cast("_Object", value), wanted, at)
        return self._array(_list(value), wanted, at) if isinstance(value, list) else ""

    def _object(self, value: _Object, wanted: _Object, at: str) -> str:
        for name in _list(wanted.get("required")):
            if name not in value:
                return f"{at}.{name}"
        known = cast("_Object", wanted.get("properties") or {})
        rest = True if "patternProperties" in wanted else wanted.get("additionalProperties", True)
        for name, inner in value.items():
            schema = known.get(name, rest)
            if wrong := self.judge(inner, schema, f"{at}.{name}"):
                return wrong
        return ""

    def _array(self, value: list[Any], wanted: _Object, at: str) -> str:
        least, most = wanted.get("minItems", 0), wanted.get("maxItems")
        if len(value) < least or (most is not None and len(value) > most):
            return at
        first = _list(wanted.get("prefixItems"))
        rest = wanted.get("items", True)
        for index, inner in enumerate(value):
            if wrong := self.judge(inner, first[index] if index < len(first) else rest, f"{at}[{index}]"):
                return wrong
        return ""

    def _found(self, reference: str) -> Any:
        target: Any = self._root
        for name in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
            name = name.replace("~1", "/").replace("~0", "~")
            target = cast("_Object", target).get(name, True) if isinstance(target, dict) else True
        return target


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _has_type(value: Any, kind: Any) -> bool:
    names = _list(kind) if isinstance(kind, list) else [kind]
    return kind is None or any(_is(value, name) for name in names)


def _is(value: Any, name: Any) -> bool:
    """A boolean is no number; a number without a fraction is an integer, however it is written."""
    known = _TYPES.get(name) if isinstance(name, str) else None
    if known is None:
        return True
    if isinstance(value, bool):
        return bool in known
    return isinstance(value, known) or (name == "integer" and isinstance(value, float) and value.is_integer())


def _same(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)

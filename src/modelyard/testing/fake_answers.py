"""What a FakeEngine says: deterministic words, some facts, minimal JSON instances. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

CAPITALS = {
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "England": "London",
    "Russia": "Moscow",
    "China": "Beijing",
    "Greece": "Athens",
    "France": "Paris",
    "Italy": "Rome",
    "Germany": "Berlin",
}
MAX_SCHEMA_DEPTH = 32
JSON_PIECE_CHARACTERS = 4


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


class BadSchema(ValueError):
    """No instance of this schema can be made; the message says where it stops."""


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer in order (their texts, to be joined as they are), and why it ends."""

    pieces: tuple[str, ...]
    finish_reason: Literal["stop", "length"]


def words(count: int, stem: str = "w") -> tuple[str, ...]:
    """`w0 w1 w2 ...` as tokens: each but the first starts with its space, as real ones do."""
    return tuple(f" {stem}{index}" if index else f"{stem}0" for index in range(count))


def about_capitals(question: str) -> tuple[str, ...] | None:
    """The sentence that answers "capital of X" in `question`, None where nothing is known."""
    for country, capital in CAPITALS.items():
        if f"capital of {country}".lower() in question.lower():
            return _tokens(f"The capital of {country} is {capital}.")
    return None


def after_prompt(prompt: str) -> tuple[str, ...] | None:
    """What follows "The capital of X is" at the end of `prompt`, None where nothing is known."""
    for country, capital in CAPITALS.items():
        if prompt.rstrip().endswith(f"capital of {country} is"):
            return (f" {capital}", ".")
    return None


def rest(pieces: tuple[str, ...], text: str) -> tuple[str, ...]:
    """What is left of an answer whose beginning `text` ends with already, as a model goes on from its own words."""
    if not pieces or pieces[0] not in text:
        return pieces
    said = "".join(pieces)
    for count in range(len(pieces), 0, -1):
        if text.endswith(said):
            return pieces[count:]
        said = said[: len(said) - len(pieces[count - 1])]
    return pieces


def as_json(value: object) -> tuple[str, ...]:
    """A JSON text in tokens of a few characters."""
    text = json.dumps(value, ensure_ascii=False)
    return tuple(text[at : at + JSON_PIECE_CHARACTERS] for at in range(0, len(text), JSON_PIECE_CHARACTERS))


def cut(pieces: Sequence[str], stops: Sequence[str], limit: int) -> Answer:
    """`pieces` up to the first stop text, which is left out, or up to `limit` tokens, whichever comes first."""
    kept, text = list(pieces[:limit]), "".join(pieces[:limit])
    found = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
    if not found:
        return Answer(tuple(kept), "length" if len(pieces) > limit else "stop")
    end, before = min(found), 0
    result: list[str] = []
    for piece in kept:
        if before < end:
            result.append(piece[: end - before])
        before += len(piece)
    return Answer(tuple(result), "stop")


def instance(schema: object) -> object:
    """The smallest value that the JSON schema allows: required properties only, the least of each range.

    Understands type, enum, const, properties/required, items/prefixItems with their minimum, string lengths, ranges,
    allOf/anyOf/oneOf (the first) and local $ref; ignores pattern and format. Raises BadSchema for what has no end."""
    return _instance(schema, schema, 0)


def _instance(schema: Any, root: Any, depth: int) -> object:
    if depth > MAX_SCHEMA_DEPTH:
        raise BadSchema(f"the schema is nested deeper than {MAX_SCHEMA_DEPTH}")
    if schema is True:
        return None
    if not is_object(schema):
        raise BadSchema("a schema is an object")
    found = _resolved(schema, root, depth)
    if "const" in found:
        return found["const"]
    if found.get("enum"):
        return found["enum"][0]
    for choice in ("anyOf", "oneOf"):
        if found.get(choice):
            return _instance(found[choice][0], root, depth + 1)
    kind = found.get("type") or _implied_type(found)
    return _of_type(kind[0] if is_list(kind) else kind, found, root, depth)


def _resolved(schema: dict[str, Any], root: Any, depth: int) -> dict[str, Any]:
    """The schema with its $ref followed and its allOf merged."""
    if isinstance(reference := schema.get("$ref"), str):
        return _resolved(_look_up(reference, root), root, _deeper(depth))
    merged = dict(schema)
    for part in merged.pop("allOf", ()):
        for key, value in _resolved(part, root, _deeper(depth)).items():
            if key == "properties":
                merged[key] = {**value, **merged.get(key, {})}
            elif key == "required":
                merged[key] = [*merged.get(key, ()), *value]
            else:
                merged.setdefault(key, value)
    return merged


def _deeper(depth: int) -> int:
    if depth >= MAX_SCHEMA_DEPTH:
        raise BadSchema("the schema refers to itself without end")
    return depth + 1


def _look_up(reference: str, root: Any) -> dict[str, Any]:
    target = root
    for name in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
        target = target.get(name) if is_object(target) else None
    if not reference.startswith("#") or not is_object(target):
        raise BadSchema(f"no such definition: {reference}")
    return target


def _implied_type(schema: Mapping[str, Any]) -> str:
    return "object" if "properties" in schema else "array" if "items" in schema else "null"


def _of_type(kind: str, schema: Mapping[str, Any], root: Any, depth: int) -> object:
    match kind:
        case "object":
            known = schema.get("properties", {})
            return {name: _instance(known.get(name, True), root, depth + 1) for name in schema.get("required", ())}
        case "array":
            first = [_instance(item, root, depth + 1) for item in schema.get("prefixItems", ())]
            missing = max(0, schema.get("minItems", 0) - len(first))
            return first + [_instance(schema.get("items", True), root, depth + 1) for _ in range(missing)]
        case "string":
            return "x" * schema.get("minLength", 0)
        case "integer" | "number":
            return _least(schema, whole=kind == "integer")
        case "boolean":
            return False
        case "null":
            return None
        case _:
            raise BadSchema(f"unknown type: {kind}")


def _least(schema: Mapping[str, Any], *, whole: bool) -> float:
    """0 where the range holds it, else its end nearest to 0."""
    step = schema.get("multipleOf", 1 if whole else 0)
    low, high = schema.get("minimum"), schema.get("maximum")
    nudge = step or 0.5
    if (above := schema.get("exclusiveMinimum")) is not None:
        low = above + nudge
    if (below := schema.get("exclusiveMaximum")) is not None:
        high = below - nudge
    value = low if low is not None and low > 0 else high if high is not None and high < 0 else 0
    if step and value % step:
        value += step - value % step
    return int(value) if whole else value


def _tokens(sentence: str) -> tuple[str, ...]:
    """Words with their leading space, the full stop on its own."""
    first, *others = sentence.removesuffix(".").split(" ")
    return (first, *(f" {word}" for word in others), ".")

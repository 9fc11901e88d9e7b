"""From YAML to checked records: every mistake is translated once, to file, line, key and a hint."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

import msgspec

from modelyard.errors import SpecError
from modelyard.spec import yaml_tree
from modelyard.spec.sizes import decode_hook
from modelyard.spec.wanted import (
    API_VERSION,
    NEVER_FORWARDED,
    Deployment,
    DeploymentFile,
    Gateway,
    ManyDeployments,
    OneDeployment,
    Tls,
    absolute,
    is_path,
)


def read_file(path: Path) -> DeploymentFile:
    """Deployments and gateway of a file. Raises SpecError naming file, line and key."""
    document = yaml_tree.read(path)
    values = _versioned(document)
    kind = ManyDeployments if "deployments" in values else OneDeployment
    _check_keys(document, values, kind, ())
    try:
        whole = msgspec.convert(values, kind, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        raise _translated(document, error) from error
    folder = path.absolute().parent
    deployments = _deployments(document, whole)
    for at, deployment in enumerate(deployments):
        steps = () if isinstance(whole, OneDeployment) else ("deployments", at)
        _check_forwarded(document, deployment, (*steps, "fields", "forward"))
    return DeploymentFile(
        deployments=tuple(_with_paths(one, folder) for one in deployments),
        gateway=_with_tls_paths(whole.gateway, folder),
    )


def _versioned(document: yaml_tree.Document) -> dict[str, object]:
    whole: object = document.value
    if not isinstance(whole, dict):
        raise document.error((), "must hold keys and values", hint=f"start with: apiVersion: {API_VERSION}")
    values = cast("dict[str, object]", whole)
    found = values.get("apiVersion")
    if found is None:
        raise document.error(("apiVersion",), "is missing", hint=f"add the line: apiVersion: {API_VERSION}")
    if found != API_VERSION:
        raise document.error(("apiVersion",), f"{found!r} is not known", hint=f"this Modelyard reads {API_VERSION}")
    return values


def _check_keys(document: yaml_tree.Document, value: object, kind: object, steps: yaml_tree.Steps) -> None:
    """Before the types: an unknown key is the likeliest mistake, and msgspec does not know its line."""
    struct = _struct_within(kind)
    if struct is None:
        return
    if isinstance(value, list):
        for at, item in enumerate(cast("list[object]", value)):
            _check_keys(document, item, struct, (*steps, at))
    if isinstance(value, dict):
        known = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        for key, inner in cast("dict[str, object]", value).items():
            if key not in known:
                raise document.error((*steps, key), "is not a known key", hint=_close(key, known))
            _check_keys(document, inner, known[key], (*steps, key))


def _struct_within(kind: object) -> type[msgspec.Struct] | None:
    """The struct in `Annotated[Limits, ...]`, `Tls | None` or `tuple[Deployment, ...]`; None where there is none."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for part in get_args(kind) if (found := _struct_within(part))), None)


def _close(key: str, known: Mapping[str, object]) -> str:
    if close := difflib.get_close_matches(key, known, n=1):
        return f"did you mean `{close[0]}`?"
    return f"known keys here: {', '.join(sorted(known))}"


_AT = re.compile(r" - at `\$(.*)`$")
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "keys and values",
    "array": "a list",
    "null": "nothing",
    "datetime": "a date",
    "date": "a date",
}


def _translated(document: yaml_tree.Document, error: msgspec.ValidationError) -> SpecError:
    message = str(error)
    found = _AT.search(message)
    steps = _steps(found[1]) if found else ()
    message = _AT.sub("", message)
    if missing := _MISSING.match(message):
        return document.error((*steps, missing[1]), "is missing", hint=f"add the key `{missing[1]}`")
    if "matching regex" in message:
        if "fields" in steps:
            return document.error(steps, "is not a request field's name", hint="use lower-case letters, digits and _")
        hint = "use lower-case letters and digits, separated by single dots or hyphens, such as qwen2.5-0.5b"
        return document.error(steps, "is not a name that can stand in paths and URLs", hint=hint)
    words = re.sub(r"`([\w| ]+)`", lambda found: _in_words(found[1]), message)
    return document.error(steps, words[0].lower() + words[1:], hint=_hint(words))


def _in_words(kinds: str) -> str:
    """`int | null` as a person says it; null is left out, because leaving the key out is how it is meant."""
    named = [_KINDS.get(kind, kind) for kind in kinds.split(" | ") if kind != "null" or kinds == "null"]
    return ", ".join(named[:-1]) + (" or " if named[1:] else "") + named[-1]


def _hint(message: str) -> str:
    if message.endswith("got nothing"):
        return "give a value, or leave the key out"
    if message.startswith("Expected text"):
        return "put the text in quotes"
    return "correct the value; `modelyard schema` says what each key takes"


def _steps(path: str) -> yaml_tree.Steps:
    """`.deployments[1].limits` as msgspec writes it; it writes `[...]` for some key of a mapping, and there we stop."""
    parts = re.findall(r"\.(\w+)|\[(\d+)\]", path.partition("[...]")[0])
    return tuple(name or int(at) for name, at in parts)


def _deployments(document: yaml_tree.Document, whole: OneDeployment | ManyDeployments) -> tuple[Deployment, ...]:
    if isinstance(whole, OneDeployment):
        fields = {name: getattr(whole, name) for name in Deployment.__struct_fields__}
        return (Deployment(**fields),)
    seen: dict[str, int] = {}
    for at, one in enumerate(whole.deployments):
        if one.name in seen:
            message = f"{one.name!r} is already the name of deployments[{seen[one.name]}]"
            raise document.error(("deployments", at, "name"), message, hint="names must differ")
        seen[one.name] = at
    _check_currency(document, whole.deployments)
    return whole.deployments


def _check_forwarded(document: yaml_tree.Document, deployment: Deployment, steps: yaml_tree.Steps) -> None:
    for name in deployment.fields.forward:
        if name in NEVER_FORWARDED:
            hint = "it is ours to set, or lets a client reach what is not its own"
            raise document.error(steps, f"{name!r} is never passed on from a client", hint=hint)


def _check_currency(document: yaml_tree.Document, deployments: tuple[Deployment, ...]) -> None:
    priced = [(at, one.prices.currency) for at, one in enumerate(deployments) if one.prices is not None]
    for at, currency in priced:
        if currency != priced[0][1]:
            message = f"is {currency}, where deployments[{priced[0][0]}] has {priced[0][1]}"
            raise document.error(
                ("deployments", at, "prices", "currency"),
                message,
                hint="one currency for all: what a key spends is one sum over its deployments",
            )


def _with_paths(deployment: Deployment, folder: Path) -> Deployment:
    if not is_path(deployment.model):
        return deployment
    return msgspec.structs.replace(deployment, model=absolute(deployment.model, folder))


def _with_tls_paths(gateway: Gateway, folder: Path) -> Gateway:
    if gateway.tls is None:
        return gateway
    authorities = gateway.tls.client_ca
    tls = Tls(
        cert=absolute(gateway.tls.cert, folder),
        key=absolute(gateway.tls.key, folder),
        client_ca=absolute(authorities, folder) if authorities is not None else None,
    )
    return msgspec.structs.replace(gateway, tls=tls)

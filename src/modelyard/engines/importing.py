"""An engine's own command line, read back into what a deployment file can say. Pure; each engine's flags are a table.

Nothing is dropped in silence: a flag becomes a key of the deployment or an engine setting, or it is listed with the
reason why not. The value of a secret is never copied."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from modelyard.errors import UsageError
from modelyard.records.base import Record

Value = str | int | float | bool


class Taken(Record):
    """`key` is where the value stands in the deployment file, such as `limits.context_tokens`; `flag` is as typed."""

    key: str
    value: Value
    flag: str


class NotTaken(Record):
    """`said` is the flag with its value, or without it where that is a secret."""

    said: str
    reason: str


class ImportedCommand(Record):
    """A deployment, as far as the command line says it. `model` is a reference as deployment files have it."""

    engine: str
    model: str
    name: str
    taken: tuple[Taken, ...] = ()
    not_taken: tuple[NotTaken, ...] = ()


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of an engine. `values` is how many words follow it; `?` takes the next one unless it is a flag, `+` all
    up to the next flag. It goes to `key`, read by `read`, or nowhere, for `reason`. `only_raw`: several flags say
    together what goes where."""

    key: str = ""
    reason: str = ""
    values: Literal["0", "1", "?", "+"] = "1"
    read: Callable[[str], Value | None] = str
    secret: bool = False
    only_raw: bool = False
    # What the absence of a value means: `--enable-x` is true, `--no-enable-x` false.
    alone: Value = True


def nowhere(reason: str, names: str, *, alone: bool = False) -> dict[str, Flag]:
    """Flags that go nowhere, all for one reason; `alone`: none of them takes a value."""
    return {name: Flag(reason=reason, values="0" if alone else "1") for name in names.split()}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one engine is spoken to. `flags` are by their main name; `aliases` lead there; `environ` are variables that
    stand for a flag. With `underscores`, `--a_b` is `--a-b`. `unknown` is said of a flag that is not among them."""

    engine: str
    version: str
    flags: Mapping[str, Flag]
    aliases: Mapping[str, str]
    environ: Mapping[str, str]
    underscores: bool = False
    unknown: str = "not a flag that we know"


@dataclass(slots=True)
class Read:
    """What was found so far. `raw` has the last value of each flag, by main name; `bare` the words that follow none."""

    dialect: Dialect
    taken: dict[str, Taken]
    not_taken: list[NotTaken]
    raw: dict[str, str]
    bare: list[str]


def read_words(dialect: Dialect, words: Sequence[str], environ: Mapping[str, str]) -> Read:
    """Every word and variable, sorted. Flags win over variables, later flags over earlier ones, as engines do it."""
    found = Read(dialect, {}, [], {}, [])
    for name, value in environ.items():
        if name in dialect.environ:
            _take(found, dialect.environ[name], dialect.flags[dialect.environ[name]], name, [value], by="=")
        else:
            found.not_taken.append(_variable(name, value))
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not _is_flag(word):
            found.bare.append(word)
            continue
        _read_flag(found, word, rest)
    return found


def _read_flag(found: Read, word: str, rest: list[str]) -> None:
    dialect = found.dialect
    typed, equals, value = word.partition("=")
    name = typed.replace("_", "-") if dialect.underscores and typed.startswith("--") else typed
    name = dialect.aliases.get(name, name)
    flag = dialect.flags.get(name)
    if flag is None and "." in name and (dotted := dialect.flags.get(name.partition(".")[0])) is not None:
        # `--speculative-config.method ngram` is one entry of a JSON value.
        flag = Flag(reason=dotted.reason or "give the whole value at once, as JSON")
    if flag is None:
        values = [value] if equals else [rest.pop(0)] if rest and not _is_flag(rest[0]) else []
        shown = [] if _SECRET.search(typed.upper()) else values
        reason = f"{dialect.unknown} ({dialect.engine} {dialect.version})"
        found.not_taken.append(NotTaken(said=_said(typed, shown), reason=reason))
        return
    values = [value] if equals else _values(flag, rest)
    _take(found, name, flag, typed, values)


def _values(flag: Flag, rest: list[str]) -> list[str]:
    if flag.values == "0":
        return []
    if flag.values == "+":
        count = next((at for at, word in enumerate(rest) if _is_flag(word)), len(rest))
        values, rest[:count] = rest[:count], []
        return values
    if rest and (flag.values == "1" or not _is_flag(rest[0])):
        return [rest.pop(0)]
    return []


def _take(found: Read, name: str, flag: Flag, typed: str, values: Sequence[str], by: str = " ") -> None:
    if flag.secret:
        found.not_taken.append(NotTaken(said=typed, reason=f"a secret, not copied; {flag.reason}"))
        return
    if flag.values == "1" and not values:
        raise UsageError(f"{typed} has no value", hint="check the command line")
    found.raw[name] = values[0] if values else ""
    if flag.only_raw:
        found.not_taken += [NotTaken(said=f"{typed} {more}", reason="one name, one model") for more in values[1:]]
        return
    if not flag.key:
        found.not_taken.append(NotTaken(said=_said(typed, values, by), reason=flag.reason))
        return
    try:
        value = flag.read(values[0]) if values else flag.alone
    except (ValueError, OverflowError):
        found.not_taken.append(NotTaken(said=_said(typed, values, by), reason="its value could not be read"))
        return
    if value is None:
        found.taken.pop(flag.key, None)
        found.not_taken.append(NotTaken(said=_said(typed, values, by), reason="planned where nothing is said"))
        return
    found.taken[flag.key] = Taken(key=flag.key, value=value, flag=_said(typed, values, by))


def _variable(name: str, value: str) -> NotTaken:
    if _SECRET.search(name):
        return NotTaken(
            said=name, reason="a secret, not copied; set it in the environment of modelyard, if it is needed"
        )
    for prefix, reason in _VARIABLES.items():
        if name.startswith(prefix):
            return NotTaken(said=f"{name}={value}", reason=reason)
    return NotTaken(said=f"{name}={value}", reason="engines get the environment that their adapter names, and no other")


_SECRET = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
# `https://user:password@host`: who may read the file must not learn it.
_IN_URL = re.compile(r"://[^/@\s]+@")
_VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "which devices a replica has is planned",
    "HIP_VISIBLE_DEVICES": "which devices a replica has is planned",
    "ROCR_VISIBLE_DEVICES": "which devices a replica has is planned",
    "HF_HOME": "set it in the environment of modelyard",
    "HF_HUB_": "set it in the environment of modelyard",
    "HF_ENDPOINT": "set it in the environment of modelyard",
}


def _is_flag(word: str) -> bool:
    """A negative number is a value."""
    return word.startswith("-") and len(word) > 1 and not re.fullmatch(r"-[0-9.,]+", word)


def _said(flag: str, values: Sequence[str], by: str = " ") -> str:
    return _IN_URL.sub("://", f"{flag}{by}{' '.join(values)}") if values else flag


# Ways to read a value.


def whole(text: str) -> int:
    return int(text)


def number(text: str) -> float:
    return float(text)


def positive(text: str) -> int | None:
    """A count; what is not positive leaves it to the engine."""
    return int(text) if int(text) > 0 else None


def yes_or_no(text: str) -> bool:
    if text.lower() in ("1", "true", "on", "yes", "enabled"):
        return True
    if text.lower() in ("0", "false", "off", "no", "disabled"):
        return False
    raise ValueError(text)


def as_path(model: str) -> str:
    """A relative path is written so that it can be nothing else."""
    return model if not model or model.startswith(("/", "./", "../", "~/")) else f"./{model}"


def public_name(text: str) -> str:
    """The nearest legal name of a deployment to what a model or a server was called."""
    last = text.rstrip("/").rpartition("/")[2]
    last = re.sub(r"[.-]gguf$", "", last, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9.]+|[.-]{2,}", "-", last.lower())[:63].strip(".-") or "model"


def on_address(found: Read, host: str, certificate: str, private_key: str) -> None:
    """What flags by these names say about listening becomes the gateway's, where its rules allow it."""
    cert, key = found.raw.get(certificate), found.raw.get(private_key)
    if cert and key:
        found.taken["gateway.tls.cert"] = Taken(key="gateway.tls.cert", value=cert, flag=certificate)
        found.taken["gateway.tls.key"] = Taken(key="gateway.tls.key", value=key, flag=private_key)
    address = found.raw.get(host)
    if not address:
        return
    if address in ("127.0.0.1", "localhost", "::1") or (cert and key):
        found.taken["gateway.host"] = Taken(key="gateway.host", value=address, flag=f"{host} {address}")
        return
    reason = (
        "reachable from other machines, which Modelyard serves with TLS only: set gateway.host and gateway.tls, or "
        "start with `modelyard up --host ADDRESS --insecure-listen` where something else guards it"
    )
    found.not_taken.append(NotTaken(said=f"{host} {address}", reason=reason))


def note_words(found: Read, words: Sequence[str]) -> None:
    """`words` belong to no flag."""
    found.not_taken += [NotTaken(said=word, reason="a word that belongs to no flag") for word in words]


def finished(found: Read, model: str, name: str) -> ImportedCommand:
    """Raises UsageError where no model is named."""
    if not model:
        raise UsageError("the command names no model", hint="the model must stand in it, as a path or as org/name")
    if _IN_URL.search(model):
        model = _IN_URL.sub("://", model)
        found.not_taken.append(NotTaken(said="the password in the model's URL", reason="a secret, not copied"))
    return ImportedCommand(
        engine=found.dialect.engine,
        model=model,
        name=public_name(name),
        taken=tuple(found.taken.values()),
        not_taken=tuple(found.not_taken),
    )

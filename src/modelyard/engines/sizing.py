"""What an engine tells the planner: how much memory a model takes in it, and which settings a plan gives it.

An engine that manages memory of its own fulfils `Sized` beside `Engine`; one that does not is planned without."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, runtime_checkable

from modelyard.hardware.machine import Machine
from modelyard.models.card import Card
from modelyard.records.base import Record
from modelyard.records.plan import Setting

SettingValue = str | int | float | bool


class Footprint(Record):
    """Bytes of one replica beside its KV cache, and seconds from the start of its process until it is ready: expected,
    and the interval that they should lie in."""

    memory_bytes: int
    memory_low_bytes: int
    memory_high_bytes: int
    load_s: float
    load_low_s: float
    load_high_s: float


class Room(Record):
    """What the planner has decided for one replica. `cores` are the replica's own; `hang_timeout_s` is when a busy
    engine without progress counts as hung; `because` has the reasons for `max_sequences` and `kv_cache_bytes`; `ranks`
    processes share cores, weights and KV cache. `accelerators` is on how many it computes: none, on the processor;
    `build` is the engine's for them."""

    cores: int
    context_tokens: int
    max_sequences: int
    kv_cache_bytes: int
    hang_timeout_s: float
    because: dict[str, str]
    ranks: int = 1
    kv_bytes_per_token: int = 0
    accelerators: int = 0
    build: str = "cpu"


class BadSetting(ValueError):
    """A setting that the engine does not have, or not with this value; the message says which, `fix` what to try."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


@runtime_checkable
class Sized(Protocol):
    """An engine whose memory can be planned. Pure, like the rest of an adapter. A sequence takes its KV cache in whole
    blocks of `kv_block_tokens`; with `whole_contexts` it holds blocks for its whole context from the start."""

    default_sequences: int
    kv_block_tokens: int
    whole_contexts: bool

    def unfit(self, card: Card) -> str | None:
        """Why it cannot take this model although format and architecture are its own; None where it can."""
        ...

    def kv_bytes_per_token(self, card: Card, overrides: Mapping[str, SettingValue]) -> int | None:
        """Bytes of KV cache per token over all layers, rounded up; None where the card does not settle it."""
        ...

    def footprint(self, card: Card, context_tokens: int) -> Footprint: ...

    def settings(
        self, room: Room, overrides: Mapping[str, SettingValue], recommended: Mapping[str, SettingValue]
    ) -> tuple[Setting, ...]:
        """Every effective setting with its reason: what the model's authors recommend in place of the engine's own
        defaults, the operator's `overrides` in place of both. Raises BadSetting."""
        ...


@runtime_checkable
class Particular(Protocol):
    """An engine that does not run on every machine, or not every model of its formats on each."""

    def unfit_on(self, machine: Machine, card: Card) -> str | None:
        """Why it cannot serve this model on this machine; None where it can."""
        ...


@runtime_checkable
class Grouped(Protocol):
    """An engine that can spread one replica over several processes, each with a share of every layer."""

    def ranks(self, card: Card, overrides: Mapping[str, SettingValue]) -> int:
        """How many the operator asks for; one where he does not. Raises BadSetting where the model cannot be divided
        so."""
        ...

    def footprint_of_ranks(self, card: Card, context_tokens: int, ranks: int) -> Footprint:
        """Of the whole replica, all ranks together."""
        ...


@runtime_checkable
class Accelerated(Protocol):
    """A Sized engine whose builds for accelerators can be planned. It computes `accelerator_sequences` sequences at
    once there unless it is told otherwise, for the reason given."""

    accelerator_sequences: int
    accelerator_sequences_because: str

    def accelerator_share(self, overrides: Mapping[str, SettingValue]) -> float:
        """The part of each one's memory that it may take, over 0 and at most 1. Raises BadSetting."""
        ...

    def unfit_on_accelerators(self, card: Card) -> str | None:
        """Why it cannot serve this model there; None where it can. Takes the place of Sized.unfit and Particular."""
        ...

    def footprint_on_accelerators(self, card: Card, ranks: int) -> Footprint:
        """Of the whole replica: bytes of the accelerators' memory, and seconds."""
        ...


def settled(
    planned: Iterable[Setting],
    recommended: Mapping[str, SettingValue],
    overrides: Mapping[str, SettingValue],
    check: Callable[[str, SettingValue, Mapping[str, Setting]], None],
) -> dict[str, Setting]:
    """Settings by name: what was planned, what the model's authors recommend in its place, and the operator's in place
    of both. `check` gets each of the operator's values beside what it replaces, and raises BadSetting."""
    settings = {setting.name: setting for setting in planned}
    for name in settings.keys() & recommended.keys():
        settings[name] = Setting(name=name, value=recommended[name], reason="the model's authors recommend it")
    for name, value in overrides.items():
        check(name, value, settings)
        settings[name] = Setting(name=name, value=value, reason="the operator's setting")
    return settings


def check_setting(
    name: str,
    value: SettingValue,
    planned: Mapping[str, Setting],
    *,
    said_elsewhere: Mapping[str, str],
    least: Mapping[str, int],
    beside: str = "",
) -> None:
    """Whether an operator may give `name` this value in place of the planned one. Raises BadSetting: for a setting that
    does not exist, for one whose number the deployment states elsewhere (`said_elsewhere` says where: two places would
    contradict each other some day), for another type, and below the `least` value. `beside` ends the list of what there
    is."""
    if name in said_elsewhere:
        raise BadSetting(f"{name} is not set under settings", f"use {said_elsewhere[name]}")
    if name not in planned:
        close = difflib.get_close_matches(name, planned, n=1)
        ours = ", ".join(sorted(key for key in planned if key not in said_elsewhere))
        raise BadSetting(
            f"{name} is no setting of this engine", f"did you mean {close[0]}?" if close else f"use {ours}{beside}"
        )
    wanted = planned[name].value
    if type(value) is not type(wanted) and not (type(value) is int and isinstance(wanted, float)):
        raise BadSetting(f"{name} is {value!r}", f"give a value such as {wanted!r}")
    if not isinstance(value, str) and value < least.get(name, value):
        raise BadSetting(f"{name} is {value!r}", f"it must be at least {least[name]}")

"""What a running engine must do beside the functional checks: account for caches, listen nowhere else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

from modelyard.records.base import UnreadableRecord, decode
from modelyard.verify.answers import WrongAnswer, quoted
from modelyard.verify.checks import FUNCTIONAL, Observation
from modelyard.verify.conformance.processes import listeners
from modelyard.verify.conformance.row import Row, Trial, of_check
from modelyard.verify.conformance.rows_dialects import DIALECT_ROWS
from modelyard.verify.conformance.subject import Subject
from modelyard.verify.probes import check_of

_CACHED_PROMPT = "Many words that are asked again word for word. " * 24


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    prompt_tokens_details: _Details | None = None

    @property
    def cached(self) -> int | None:
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details is not None else None


class _Answer(msgspec.Struct):
    usage: _Usage


async def _cached_tokens(trial: Trial) -> Observation:
    fresh, again = await _usage_of(trial), await _usage_of(trial)
    sound = fresh.cached is not None and again.cached is not None
    sound = sound and 0 <= (fresh.cached or 0) < (again.cached or 0) <= again.prompt_tokens
    return Observation(
        "more cached tokens the second time, no more than the prompt has",
        f"{fresh.cached} then {again.cached} of {again.prompt_tokens} prompt tokens",
        sound,
    )


async def _usage_of(trial: Trial) -> _Usage:
    body = await trial.running.whole(_CACHED_PROMPT, 1)
    try:
        return decode(body, _Answer).usage
    except UnreadableRecord as error:
        raise WrongAnswer(f"{error.message}: {quoted(body.decode(errors='replace'))}") from error


def _tells_no_cached_tokens(subject: Subject) -> str:
    return "" if subject.engine.capabilities.cached_token_usage else "the engine does not claim cached tokens in usage"


async def _listeners(trial: Trial) -> Observation:
    launched, ports = trial.running.launched, trial.subject.engine.capabilities.loopback_ports
    given, found = launched.spec.address, listeners(await launched.processes())
    wrong = strangers(found - {given}, loopback_ports=ports)
    of_its_own = sorted(found - wrong - {given})
    return Observation(
        f"the given address{', ports on loopback' if ports else ''}, unix sockets that only this user can reach",
        f"{'the given address' if given in found else 'not the given address'}, {len(of_its_own)} of its own"
        + (f"; and {', '.join(sorted(wrong))}" if wrong else ""),
        given in found and not wrong,
    )


def strangers(addresses: frozenset[str], *, loopback_ports: bool) -> frozenset[str]:
    """Those of an engine's own `addresses` that others than it and this user can reach: beyond this machine always,
    ports on loopback unless the engine claims that it needs them."""
    on_loopback = ("http://127.", "http://[::1]:") if loopback_ports else ()
    return frozenset(one for one in addresses if not _only_ours(one) and not one.startswith(on_loopback))


def _only_ours(address: str) -> bool:
    """Whether it is a unix socket in a place that nobody else may enter."""
    path = address.removeprefix("unix:")
    if path == address or path.startswith("@"):
        return False
    try:
        socket_file, folder = os.stat(path), os.stat(Path(path).parent)
    except OSError:
        return True  # unlinked: nobody can reach it any more
    everybody = stat.S_IRWXG | stat.S_IRWXO
    return socket_file.st_uid == os.getuid() and not (socket_file.st_mode & folder.st_mode & everybody)


def running_rows(subject: Subject) -> tuple[Row, ...]:
    """Verification's own checks first, then what else is claimed."""
    known = tuple(check_of(number, probe) for number, probe in enumerate(subject.probes, 1))
    return (*(of_check(check) for check in (*FUNCTIONAL, *known)), *DIALECT_ROWS, *_ROWS)


_ROWS = (
    Row(
        "cached-tokens",
        "usage tells how much of a prompt was cached",
        "prompt_tokens_details.cached_tokens rises when the same prompt comes again",
        "switch on the engine's details of prompt tokens",
        _cached_tokens,
        unclaimed=_tells_no_cached_tokens,
    ),
    Row(
        "listeners",
        "it listens nowhere else",
        "the given address; unix sockets that only this user can reach; ports on loopback where it claims to need them",
        "bind the engine's own ports to unix sockets, or keep it in a network of its own",
        _listeners,
    ),
)

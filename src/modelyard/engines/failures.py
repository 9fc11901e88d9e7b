"""How an engine's end is read: known words first, then the way in which it ended."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from modelyard.engines.contract import ExitReport, Failure

_BAD_USAGE = 2
_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}
MEMORY_FIX = "lower limits.kv_cache, limits.context_tokens or limits.max_in_flight, or free memory"
DAMAGED_FIX = "fetch the model again; if it stays, the file itself is not what its name says"


class Known(NamedTuple):
    """`pattern` is searched in a line; `cause` may use its groups, and is the line itself if empty."""

    pattern: str
    template: Failure


def known(pattern: str, kind: str, cause: str, fix: str, *, permanent: bool = True) -> Known:
    return Known(pattern, Failure(kind=kind, cause=cause, fix=fix, permanent=permanent))  # type: ignore[arg-type]


# What every program of ours says in these words.
OF_OUR_PROGRAMS = (
    known(r"model_path (.*) does not exist", "model", r"the model is not at \1", "fetch the model again"),
    known(
        r"bad_alloc|Cannot allocate memory|Resource temporarily unavailable|MemoryError",
        "out_of_memory",
        "an allocation was refused: memory or address space is used up",
        MEMORY_FIX,
        permanent=False,
    ),
    known(
        r"No module named|ImportError|cannot open shared object",
        "bad_config",
        "",
        "remove the engine's environment (it is made again) or install the missing system library",
    ),
    known(
        r"cannot serve on (.*)",
        "crashed",
        r"it cannot listen on \1",
        "see whether the state directory is still there and its disk has space",
        permanent=False,
    ),
    known(
        r"was killed by SIGKILL",
        "killed",
        "something killed the process that holds the model (SIGKILL); often the kernel, for lack of memory",
        MEMORY_FIX,
        permanent=False,
    ),
    known(
        r"was killed by SIGILL",
        "crashed",
        "it used an instruction that this CPU does not have",
        "use another engine on this machine",
    ),
    known(
        r"was killed by (SIGSEGV|SIGBUS|SIGABRT)",
        "crashed",
        r"the engine crashed in its own code (\1)",
        "if it happens while loading, the model's file may be cut short: fetch it again",
        permanent=False,
    ),
)


def explain_by(words: Iterable[Known], exit: ExitReport, lines: Iterable[str], error: str) -> Failure:
    """The first of `words` that is found in one of `lines`, in this order of words; the way it ended otherwise.
    `error` is what the engine itself named as the cause; empty where it did not."""
    if exit.out_of_memory:
        cause = "the kernel ended it: out of memory"
        return Failure(kind="out_of_memory", cause=cause, fix=MEMORY_FIX, permanent=False)
    searched = tuple(lines)
    for pattern, template in words:
        for line in searched:
            if found := re.search(pattern, line):
                return Failure(
                    kind=template.kind,
                    cause=found.expand(template.cause) if template.cause else error,
                    fix=found.expand(template.fix),
                    permanent=template.permanent,
                )
    return _by_ending(exit, error)


def _by_ending(exit: ExitReport, error: str) -> Failure:
    if exit.signal in (9, 15):
        cause = f"something outside ended it ({_SIGNALS[exit.signal]})"
        return Failure(kind="killed", cause=cause, fix="find out who did; it is started again", permanent=False)
    if exit.code == _BAD_USAGE:
        cause = error or "it refused its configuration"
        return Failure(kind="bad_config", cause=cause, fix="correct the deployment's settings", permanent=True)
    ended = f"exit code {exit.code}" if exit.signal is None else _SIGNALS.get(exit.signal, f"signal {exit.signal}")
    said = error or next((line for line in reversed(exit.tail) if line.strip()), "no word in its log")
    return Failure(kind="crashed", cause=f"{ended}: {said}", fix="read the engine's log", permanent=False)


def last_error(tail: tuple[str, ...]) -> str:
    """The cause in the last `error: cause` line; empty where there is none."""
    return next((line.removeprefix("error: ") for line in reversed(tail) if line.startswith("error: ")), "")

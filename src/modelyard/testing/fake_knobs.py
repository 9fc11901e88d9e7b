"""Everything that a FakeEngine can be told to do. Standard library only: the engine's process imports this by path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

Value = str | int | float | bool | None

STARTUP_STYLES = ("refused", "503", "refused-then-503", "log-progress", "503-with-progress")
# What `defect` makes wrong, under the name of the row of the conformance kit that must notice it, and no other.
DEFECTS: dict[str, str] = {
    "progress": "the fraction of the load falls",
    "ready": "/health is well while it still loads",
    "chat": "short chat answers are blank",
    "completion": "short continuations are blank",
    "chat-stream": "streamed chat answers begin with another word",
    "completion-stream": "streamed continuations begin with another word",
    "stop": "stop texts are ignored",
    "max-tokens": "short chat answers have two tokens more than asked for",
    "usage": "the total is not the sum",
    "json-schema": "response_format is ignored",
    "tokenize": "tokens are counted without the first",
    "messages": "a stream of a message ends without its last event",
    "responses": "a response counts one token more than it has",
    "unknown-model": "any model name is answered",
    "context": "a prompt that is too long is cut",
    "malformed-json": "a body that is not JSON is answered with 500",
    "cached-tokens": "usage tells no cached tokens",
    "metrics": "the KV cache is not reported",
    "metrics-load": "what waits is not counted",
    "token-counts": "generated tokens are counted twice",
    "work-done": "the counter of steps stands still in a prefill",
    "cancel-decode": "an answer whose client has left is finished",
    "cancel-prefill": "a prompt whose client has left is read to its end",
    "listeners": "it listens on a TCP port as well",
    "terminate": "SIGTERM is ignored",
    "drain": "running answers are finished at SIGTERM",
    "restart": "every start has other words",
    "kill-2": "it stays, and answers nothing, when its worker dies",
    "bad-setting": "unknown knobs are ignored",
    "nothing-left": "a file stays in its working directory",
}
# Exit code (negative: the signal that it ends by) and the last words of each way to die at the start.
CRASHES: dict[str, tuple[int, tuple[str, ...]]] = {
    "bad-flag": (2, ("error: unknown setting: --kv-cash-dtype",)),
    "missing-file": (1, ("error: no such file: /models/absent.gguf",)),
    "damaged-model": (1, ("error: the model is damaged: its tensors end at byte 91739424, the file at 1048576",)),
    "does-not-fit": (1, ("error: does not fit: 3221225472 bytes of KV cache asked for, 1073741824 free",)),
    "out-of-memory": (-9, ("allocating 3221225472 bytes",)),
    "crash": (1, ("Traceback (most recent call last):", "RuntimeError: the device went away")),
}
_START_ONLY = frozenset(
    {
        "address",
        "startup_s",
        "startup_style",
        "progress_lines",
        "load_log_lines",
        "crash_at_start",
        "defect",
        "workers",
        "kv_cache_bytes",
        "kv_least_bytes",
        "memory_bytes",
    }
)
_ACCEPTED: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "int | None": (int, type(None)),
}


class BadKnob(ValueError):
    """No such knob, or a value that it cannot take; the message says which and why."""


@dataclass(frozen=True)
class Knobs:
    """A FakeEngine's behaviour. Each knob is off or harmless by default; all numbers are ≥ 0, `None` means never.

    "After N tokens" counts the tokens of one answer: 0 is before its first token, after its prefill. Knobs other than
    those of the start can be turned at any time by `POST /fake/knobs`."""

    address: str = "127.0.0.1:0"
    """Where to listen: `unix:/path` or `host:port`; with port 0 the `ready` line tells the port."""
    served_name: str = "fake"
    """The model name that it answers to; any other is refused with 404."""
    context_tokens: int = 8192
    """Prompt and answer together; a prompt that leaves no room is refused with 400."""
    max_sequences: int = 16
    """Answers that are produced at the same time; further requests wait inside the engine."""

    tokens: int = 64
    """Words of an answer where the request asks for no fewer: "w0 w1 w2 ..."."""
    stem: str = "w"
    """What those words begin with; letters of several bytes make streams that can be torn inside one."""
    facts: bool = True
    """Know some capitals, so that knowledge checks pass; false makes a model that answers wrongly."""
    thoughts: int = 0
    """The first words of a chat answer that are told as `reasoning_content`."""
    call_tools: bool = False
    """Call the first tool that a chat offers, with the smallest arguments that its schema allows, until its result is
    among the messages."""
    prefill_s: float = 0.0
    """Time before the first token of an answer; the prompt is processed, and counted, in slices of it."""
    prefill_token_s: float = 0.0
    """Time for each token of a prompt that is not cached, besides."""
    prefix_cache: bool = True
    """Remember prompts, apart for each `cache_salt` of a request; false computes every prompt anew."""
    token_interval_s: float = 0.0
    """Time before each token of an answer."""

    startup_s: float = 0.0
    """How long it loads."""
    startup_style: str = "log-progress"
    """While it loads: `refused` does not listen; `503` listens and answers 503; `refused-then-503` one half of the time
    each; `log-progress` does not listen and prints `progress` lines; `503-with-progress` does both."""
    progress_lines: int = 4
    """How many `progress` lines the styles with progress print."""
    load_log_lines: str = ""
    """Lines to print verbatim before it loads."""
    crash_at_start: str = ""
    """How to end when it has loaded, one of CRASHES: bad-flag, missing-file, damaged-model, does-not-fit,
    out-of-memory (ends by SIGKILL as if the kernel had done it), crash."""
    memory_bytes: int = 0
    """How much memory it takes while it loads; refused, it ends as one that does not fit."""
    kv_cache_bytes: int | None = None
    """What it is given for keys and values; nothing is really taken."""
    kv_least_bytes: int = 0
    """With less than this for keys and values it ends as one that does not fit."""
    workers: int = 0
    """Processes beside its own, as ranks are; if one dies, it says so and ends."""
    defect: str = ""
    """One thing that it does wrongly, one of DEFECTS."""

    crash_after_tokens: int | None = None
    """End the process, with exit code 1, after this many tokens of an answer."""
    crash_on_text: str = ""
    """A poison prompt: end the process before the first token of an answer to a prompt that contains this text ..."""
    crash_on_text_after: int = 0
    """... or after so many tokens of it."""
    hang_after_tokens: int | None = None
    """Stop producing, for every request, after this many tokens of an answer; `None` goes on again."""
    hang_on_text: str = ""
    """Stop producing, for every request, at a prompt that contains this text; the empty text goes on again."""
    healthy_while_hung: bool = True
    """Answer /health and /metrics while hung, as an engine with a process of its own for HTTP does; false leaves
    everything but /fake/... unanswered."""
    truncate_after_tokens: int | None = None
    """Close the connection after this many tokens of an answer, without its end."""
    close_keepalive_after_reply: bool = False
    """Close the connection right after each reply without announcing it: the keep-alive race as it happens."""
    close_keepalive_on_reuse: bool = False
    """Close the connection, with no byte of a reply, when a second request arrives on it: the race, always lost."""
    slow_read_s: float = 0.0
    """Read nothing from a connection for this long after each read: a long request meets back-pressure."""
    ignore_disconnects: bool = False
    """Go on producing an answer whose client has left."""
    ignore_sigterm: bool = False
    """Say so in the log and live on; only SIGKILL ends it then."""

    def changed(self, changes: Mapping[str, Value]) -> Knobs:
        """These knobs with `changes` in them. Raises BadKnob for an unknown name or a wrong value."""
        known = {knob.name: str(knob.type) for knob in fields(self)}
        for name, value in changes.items():
            if name not in known:
                raise BadKnob(f"unknown knob: {name}")
            _check(name, known[name], value)
        return replace(self, **dict(changes))  # pyright: ignore[reportArgumentType]

    def turned(self, changes: Mapping[str, Value]) -> Knobs:
        """As `changed`, at runtime: knobs of the start are refused too."""
        if late := _START_ONLY & changes.keys():
            raise BadKnob(f"only read at the start: {', '.join(sorted(late))}")
        return self.changed(changes)


def read_object(text: bytes) -> dict[str, Value]:
    """The knobs in a JSON text, unchecked. Raises ValueError where it is not a JSON object."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise BadKnob("knobs are a JSON object")
    return value  # pyright: ignore[reportUnknownVariableType]


def _check(name: str, kind: str, value: Value) -> None:
    is_flag = isinstance(value, bool)
    if not isinstance(value, _ACCEPTED[kind]) or (is_flag and kind != "bool"):
        raise BadKnob(f"{name}: wants {kind}, not {value!r}")
    if not is_flag and isinstance(value, (int, float)) and not 0 <= value < float("inf"):
        raise BadKnob(f"{name}: wants a number ≥ 0, not {value!r}")
    if name == "startup_style" and value not in STARTUP_STYLES:
        raise BadKnob(f"{name}: one of {', '.join(STARTUP_STYLES)}, not {value!r}")
    if name == "crash_at_start" and value and value not in CRASHES:
        raise BadKnob(f"{name}: one of {', '.join(CRASHES)}, not {value!r}")
    if name == "defect" and value and value not in DEFECTS:
        raise BadKnob(f"{name}: one of {', '.join(DEFECTS)}, not {value!r}")
    if name == "max_sequences" and value == 0:
        raise BadKnob("max_sequences: wants at least 1")

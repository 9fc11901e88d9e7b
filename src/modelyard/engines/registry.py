"""Which engines there are. An adapter is imported when it is named: what nobody uses costs nothing."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from modelyard.engines.contract import Engine
from modelyard.errors import UsageError


def _openvino() -> Engine:
    from modelyard.engines.openvino import OpenVino

    return OpenVino()


def _llamacpp() -> Engine:
    from modelyard.engines.llamacpp import LlamaCpp

    return LlamaCpp()


def _vllm() -> Engine:
    from modelyard.engines.vllm import Vllm

    return Vllm()


def _fake() -> Engine:
    from modelyard.engines.fake import FakeAdapter

    return FakeAdapter()


# In the order in which `auto` prefers them.
_ENGINES: dict[str, Callable[[], Engine]] = {"openvino": _openvino, "llama.cpp": _llamacpp, "vllm": _vllm}
# Known by name, never offered: nobody serves a model with it.
_STAND_INS: dict[str, Callable[[], Engine]] = {"fake": _fake}


def engine(name: str) -> Engine:
    """The adapter called `name`. Raises UsageError with the names that exist."""
    if make := _ENGINES.get(name) or _STAND_INS.get(name):
        return make()
    close = difflib.get_close_matches(name, _ENGINES, n=1)
    hint = f"did you mean {close[0]}?" if close else f"engines: {', '.join(_ENGINES)}"
    raise UsageError(f"there is no engine called {name!r}", hint=hint)


def names() -> tuple[str, ...]:
    """Every engine's name; no adapter is imported for it."""
    return tuple(_ENGINES)


def engines() -> tuple[Engine, ...]:
    """Every adapter that serves models, the one that `auto` prefers first."""
    return tuple(make() for make in _ENGINES.values())

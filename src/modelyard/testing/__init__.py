"""Shipped fakes: real child processes that behave like engines, and worse."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.testing.fake_child import FakeEngine

__all__ = ["FakeEngine"]


def __getattr__(name: str) -> object:
    # On demand: the engine's own process imports this package too, with the standard library alone and in a hurry.
    if name == "FakeEngine":
        from modelyard.testing.fake_child import FakeEngine

        return FakeEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Shipped fakes: real child processes that behave like engines, and worse."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.testing.fake_child import FakeEngine
    from modelyard.testing.fault_plan import Fault
    from modelyard.testing.fault_proxy import FaultProxy

__all__ = ["FakeEngine", "Fault", "FaultProxy"]


def __getattr__(name: str) -> object:
    # On demand: the engine's own process imports this package too, with the standard library alone and in a hurry.
    if name == "FakeEngine":
        from modelyard.testing.fake_child import FakeEngine

        return FakeEngine
    if name == "FaultProxy":
        from modelyard.testing.fault_proxy import FaultProxy

        return FaultProxy
    if name == "Fault":
        from modelyard.testing.fault_plan import Fault

        return Fault
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

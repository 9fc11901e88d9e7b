"""Apple silicon: `system_profiler`'s JSON. The GPU works in the machine's own memory.

Tested on recorded outputs only: nothing here has run on the hardware."""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

from modelyard.hardware.accelerator import Accelerator, Found, unreadable
from modelyard.hardware.tools import Run


class _Display(msgspec.Struct):
    model: str = msgspec.field(name="sppci_model", default="")
    vendor: str = msgspec.field(name="spdisplays_vendor", default="")
    cores: str = msgspec.field(name="sppci_cores", default="")
    metal: str = msgspec.field(name="spdisplays_mtlgpufamilysupport", default="")


class _Profile(msgspec.Struct):
    displays: list[_Display] = msgspec.field(name="SPDisplaysDataType", default_factory=list[_Display])


def find(root: Path, run: Run) -> Found:
    if platform.system() != "Darwin":
        return Found()
    said = run(("system_profiler", "SPDisplaysDataType", "-json"))
    if said is None or said.failed is not None:
        why = "it is not there" if said is None else said.failed or ""
        return Found((), (unreadable("system_profiler", why),))
    try:
        return Found(from_profiler(said.text))
    except ValueError as error:
        return Found((), (unreadable("system_profiler", f"its answer cannot be read: {error}"),))


def from_profiler(text: str) -> tuple[Accelerator, ...]:
    """GPUs of other makers in a Mac are left out: nothing that we start can use them. Raises ValueError."""
    try:
        displays = msgspec.json.decode(text, type=_Profile).displays
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ValueError(str(error)) from error
    ours = [one for one in displays if "apple" in f"{one.vendor} {one.model}".lower()]
    return tuple(
        Accelerator(
            vendor="apple",
            index=index,
            name=f"{one.model} GPU" + (f", {one.cores} cores" if one.cores else ""),
            unified=True,
            architecture=one.metal.removeprefix("spdisplays_"),
        )
        for index, one in enumerate(ours)
    )

"""A tiny packaged model, and (run as a program) a fetch of it that stops at a chosen step."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from gguf_files import gguf

from modelyard.models import store as store_module
from modelyard.models.catalogue import Entry, PackagedFile
from modelyard.models.sources import fetch
from modelyard.models.store import Store
from modelyard.settings import load
from modelyard.state import open_state

PACKAGE, VERSION = "tiny-model", "1.0"
MEMBER = "tiny_model/tiny.gguf"
CONTENT = gguf()


def tiny_entry() -> Entry:
    return Entry(
        name="tiny",
        summary="a model of no use",
        licence="Apache-2.0",
        format="gguf",
        file=PackagedFile(
            package=PACKAGE,
            version=VERSION,
            wheel_bytes=4096,
            member=MEMBER,
            size_bytes=len(CONTENT),
            sha256=hashlib.sha256(CONTENT).hexdigest(),
        ),
        probes=(),
    )


def stay_here() -> None:
    print("reached", flush=True)
    while True:
        signal.pause()


def main(root: Path, stop_at: str) -> None:
    steps = {"blob-in-place": "_link", "link-in-place": "write_atomically"}
    if name := steps.get(stop_at):
        setattr(store_module, name, lambda *_: stay_here())

    def on_progress(step: str, done: int, total: int | None) -> None:
        begins_or_ends = "ends" if done == total else "begins"
        if stop_at in (step, f"{step}-{begins_or_ends}"):
            stay_here()

    fetch(tiny_entry(), Store(open_state(root)), load(dict(os.environ)), on_progress)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

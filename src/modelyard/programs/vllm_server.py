"""vLLM's own server, with two things changed.

    vllm_server.py FLAGS OF VLLM...

The traceback of the server itself is cut short: it follows those of the processes that it started, and at its full
length it would push the cause out of the last lines that are kept of a log.

What its processes share in memory is named after their temporary folder. They talk through /dev/shm under names drawn
at random. Whoever kills the whole group (we do, when a rank dies) kills the process that would have removed them too,
and nobody could tell later whose they were. Processes that vLLM spawns read this file again before anything else, so
the names hold in all of them."""

from __future__ import annotations

import multiprocessing.process
import multiprocessing.shared_memory
import os
import runpy
import secrets
import sys
import tempfile
import traceback
from types import TracebackType

PREFIX = f"/modelyard-{os.path.basename(tempfile.gettempdir())}"


def _name() -> str:
    return f"{PREFIX}-{secrets.token_hex(8)}"


# CPython 3.11 to 3.14 have no public way to choose these names.
setattr(multiprocessing.shared_memory, "_make_filename", _name)  # noqa: B010
getattr(multiprocessing.process.current_process(), "_config")["semprefix"] = PREFIX  # noqa: B009


def _in_short(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    traceback.print_exception(kind, error, trace, limit=-3, chain=False)


if __name__ == "__main__":
    sys.excepthook = _in_short
    # By its module: the `vllm` command looks for a distribution called vllm, which the build for CPUs is not.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")

"""vLLM's own server, with four things changed.

    vllm_server.py FLAGS OF VLLM...

Tracebacks with which processes end are cut short. vLLM has logged the cause at full length before; then every process
above the one that had it ends with a traceback of its own, which would push the cause out of the last lines that are
kept of a log.

What its processes share in memory is named after their temporary folder. They talk through /dev/shm under names drawn
at random. Whoever kills the whole group (we do, when a rank dies) kills the process that would have removed them too,
and nobody could tell later whose they were.

More ranks than cores add up through gloo. vLLM's own way on CPUs is shared memory, in which a rank waits for the others
without ever giving up its core, which the slowest of them needs: with three ranks on two busy cores 64 tokens took more
than 30 s that way, and 16 tokens 3 s through gloo.

Processes that vLLM spawns read this file again before anything else, so that all of it holds in each of them."""

from __future__ import annotations

import functools
import importlib
import multiprocessing.process
import multiprocessing.shared_memory
import os
import runpy
import secrets
import sys
import tempfile
import traceback
from types import TracebackType
from typing import Any

PREFIX = f"/modelyard-{os.path.basename(tempfile.gettempdir())}"


def _name() -> str:
    return f"{PREFIX}-{secrets.token_hex(8)}"


def _meeting_place() -> str:
    """Where the ranks of one replica find each other; the segments in which they add up are named after it."""
    return f"file://{tempfile.gettempdir()}{PREFIX}-ranks"


def _in_short(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    traceback.print_exception(kind, error, trace, limit=-3, chain=False)


def _last_words(*_: object, **__: object) -> None:
    """What multiprocessing prints when a process of it fails."""
    if (error := sys.exc_info()[1]) is not None:
        _in_short(type(error), error, error.__traceback__)


# CPython 3.11 to 3.14 have no public way to choose these names.
setattr(multiprocessing.shared_memory, "_make_filename", _name)  # noqa: B010
getattr(multiprocessing.process.current_process(), "_config")["semprefix"] = PREFIX  # noqa: B009
setattr(traceback, "print_exc", _last_words)  # noqa: B010

network: Any = importlib.import_module("vllm.utils.network_utils")
network.get_file_store_init_method = _meeting_place
communicator: Any = importlib.import_module("vllm.distributed.device_communicators.cpu_communicator").CpuCommunicator
share_memory: Any = communicator._all_group_ranks_share_shm_group_name


def _may_share_memory(self: Any) -> bool:
    return self.world_size <= len(os.sched_getaffinity(0)) and share_memory(self)


communicator._all_group_ranks_share_shm_group_name = _may_share_memory
# Its shutdown ends the engine first and then waits for open connections, whose answers nobody produces any more.
# Without a limit it waits for ever (seen with 0.32, a stream open at SIGTERM).
uvicorn_config: Any = importlib.import_module("uvicorn").Config
uvicorn_config.__init__ = functools.partialmethod(uvicorn_config.__init__, timeout_graceful_shutdown=1)

if __name__ == "__main__":
    sys.excepthook = _in_short
    # By its module: the `vllm` command looks for a distribution called vllm, which the build for CPUs is not.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")

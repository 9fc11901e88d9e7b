"""vLLM's own server, with one thing changed: what its processes share in memory is named after their temporary folder.

    vllm_server.py FLAGS OF VLLM...

They talk through /dev/shm under names drawn at random. Whoever kills the whole group (we do, when a rank dies) kills the
process that would have removed them too, and nobody could tell later whose they were. Processes that vLLM spawns read
this file again before anything else, so the names hold in all of them."""

from __future__ import annotations

import multiprocessing.process
import multiprocessing.shared_memory
import os
import runpy
import secrets
import tempfile

PREFIX = f"/modelyard-{os.path.basename(tempfile.gettempdir())}"


def _name() -> str:
    return f"{PREFIX}-{secrets.token_hex(8)}"


# CPython 3.11 to 3.14 have no public way to choose these names.
setattr(multiprocessing.shared_memory, "_make_filename", _name)  # noqa: B010
getattr(multiprocessing.process.current_process(), "_config")["semprefix"] = PREFIX  # noqa: B009

if __name__ == "__main__":
    # By its module: the `vllm` command looks for a distribution called vllm, which the build for CPUs is not.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")

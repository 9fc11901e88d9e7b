"""The engine process of the llama.cpp server: xllamacpp, which is llama-server with Python's handle on it.

Why a process of its own: loading holds Python's interpreter lock from beginning to end, so an event loop beside it
could neither answer /health nor notice a signal; and what crashes in native code takes only this process along.

stdout carries lines for the HTTP process: `progress {JSON}`, `ready {JSON}`, `error: CAUSE`. stderr is llama.cpp's log.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from contextlib import suppress
from typing import Any

from llamacpp_config import SOCKET, ServerConfig
from parent_death import die_with_parent


def main() -> None:
    parser = argparse.ArgumentParser(description="The engine process; started by llamacpp_server.py.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--parent", type=int, required=True, help="process id of the HTTP process")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    try:
        config = ServerConfig.load(arguments.config)
        report("import", 0, "importing llama.cpp")
        xllamacpp: Any = importlib.import_module("xllamacpp")
        report("load", 1, f"loading {config.model_path}")
        with suppress(FileNotFoundError):
            os.unlink(SOCKET)
        # It listens, loads, and computes a first token; only then it returns. The name keeps it alive.
        server = xllamacpp.Server(parameters(xllamacpp, config))
        report("warm", 2, "loaded")
        tell("ready", json.dumps(effective(xllamacpp, config, server)))
    except Exception as error:  # the outermost border of this process: name the cause, then end
        tell("error:", " ".join(f"{type(error).__name__}: {error}".split())[:2000])
        sys.exit(1)
    # The other end of standard input closes when the HTTP process is gone. Its threads need no farewell.
    sys.stdin.buffer.read()
    os._exit(0)


def report(stage: str, done: int, text: str) -> None:
    tell("progress", json.dumps({"stage": stage, "done": done, "total": 2, "text": text}))


def tell(kind: str, value: str) -> None:
    print(kind, value, flush=True)

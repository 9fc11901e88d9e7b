"""Runs a command that must not outlive the process that started it: `tethered.py COMMAND ARGUMENT...`.

The starter keeps the other end of our standard input open. When it closes (because the starter says so, or because it
died, however it died), the command is killed. Ends with the command's exit code, 128 + signal where one ended it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    # The starter decides when to stop; a Ctrl-C in the terminal reaches it and the command too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Descriptors that the starter passed on (its locks) are the command's too: they last as long as the command.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False)

    def stop(number: int, frame: object) -> None:
        child.kill()

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=_kill_when_released, args=(child,), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _kill_when_released(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 64):
        pass
    child.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

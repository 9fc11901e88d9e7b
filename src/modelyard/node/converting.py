"""Making one artifact out of another: a program of ours, run inside the environment of the engine that wants it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from modelyard.engines.contract import Conversion, Installed
from modelyard.errors import ModelRefused, ModelyardError
from modelyard.models.derived import Derived
from modelyard.models.hashing import Progress
from modelyard.models.reader import read_card
from modelyard.models.store import Store
from modelyard.records.plan import Artifact

_REFUSED = 2
_STOP_S = 5.0
_TETHERED = Path(__file__).parents[1] / "programs" / "tethered.py"
# Beside the weights: tokenizer and configuration, and filesystem overhead.
_EXTRA_BYTES = 32 << 20


def find(conversion: Conversion, wanted: Artifact, parent: Artifact, store: Store) -> Artifact | None:
    """`wanted` where it was made before; None where it must be made."""
    return Derived(store).find(wanted, parent, conversion.recipe)


def convert(
    conversion: Conversion, wanted: Artifact, parent: Artifact, install: Installed, store: Store, on_progress: Progress
) -> Artifact:
    """`wanted` (planning.conversion says what that is) as files of the store, made out of `parent` unless it is there.

    An interruption leaves nothing. Raises ModelRefused where this model cannot be converted, StateLocked where another
    process writes to the store, ModelyardError where the disk is full or the program failed."""
    if found := find(conversion, wanted, parent, store):
        return found
    with store.writing() as writer:
        writer.require_space(wanted.size_bytes + _EXTRA_BYTES)
        made = writer.partial_folder() / wanted.name
        made.mkdir()
        _run([install.python, conversion.program, parent.path, str(made)], parent.name, on_progress)
        read_card(made)
        return Derived(store).keep(writer, made, wanted, parent, conversion.recipe, on_progress)


def _run(command: list[str], name: str, on_progress: Progress) -> None:
    """The program ends with us, also when we are killed, and is ended where anything goes wrong here."""
    with TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_TETHERED), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert child.stdin is not None and child.stdout is not None
        try:
            cause = _listen(child.stdout, on_progress)
            code = child.wait()
        finally:
            child.stdin.close()
            child.stdout.close()
            child.wait(_STOP_S)
        if code != 0:
            raise _failure(name, code, cause, log)


def _listen(lines: IO[bytes], on_progress: Progress) -> str:
    """What the program says until it is silent; the cause where it names one."""
    cause = ""
    for line in (raw.decode(errors="replace").strip() for raw in lines):
        if line.startswith("error: "):
            cause = line.removeprefix("error: ")
        elif told := _progress(line):
            on_progress(*told)
    return cause


def _progress(line: str) -> tuple[str, int, int] | None:
    kind, _, values = line.partition(" ")
    if kind != "progress":
        return None
    try:
        told = json.loads(values)
        return str(told["stage"]), int(told["done"]), int(told["total"])
    except (ValueError, KeyError, TypeError):
        return None


def _failure(name: str, code: int, cause: str, log: IO[bytes]) -> ModelyardError:
    if code == _REFUSED:
        return ModelRefused(
            f"{name} cannot be converted: {cause}", hint="use another engine, or a folder of safetensors"
        )
    log.seek(0)
    words = log.read().decode(errors="replace").strip().splitlines()
    return ModelyardError(
        f"converting {name} failed: {cause or (words[-1] if words else f'exit code {code}')}",
        hint="\n".join(words[-8:]) or "see whether the disk has space and the memory suffices",
    )

"""Loads a module of the `programs` folder the way its own process does: by path, beside its siblings."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import modelyard

PROGRAMS = Path(modelyard.__file__).parent / "programs"


def load_program(name: str) -> Any:
    sys.path.insert(0, str(PROGRAMS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(PROGRAMS))

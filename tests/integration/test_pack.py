"""Packs: a deployment with its weights from one machine to another, every byte checked, nothing beyond its place."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import Command
from modelyard.errors import FetchFailed, ModelyardError, UsageError
from modelyard.models import pack_writing
from modelyard.models.pack import Pack, open_pack
from modelyard.models.pack_writing import write_pack
from modelyard.models.store import Store
from modelyard.records.base import decode, encode
from modelyard.state import StateDirectory, open_state

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from models_on_disk import folder, gguf_of

FAKE = (str(Path(__file__).parents[1] / "fake_up.py"),)
CONTENT = gguf_of(200_000)


@pytest.fixture
def here(tmp_path: Path) -> Command:
    return Command(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Command:
    return Command(tmp_path / "there")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "my model.gguf"
    path.write_bytes(CONTENT)
    return path


DEPLOYMENT = """\
# Kept as its author wrote it.
apiVersion: modelyard/v1
deployments:
  - name: first   # the first
    model: "./my model.gguf"
    engine: openvino
  - {name: second, model: ./my model.gguf, engine: openvino, limits: {context_tokens: 256}}
"""

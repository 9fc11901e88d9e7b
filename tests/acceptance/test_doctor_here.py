"""`modelyard doctor` on this very machine, as a command, with the real engine's kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Command
from modelyard.cli.doctor import Report
from modelyard.engines.contract import Installed
from modelyard.hardware.machine import probe
from modelyard.hardware.rates import Rates, load_rates
from modelyard.records.base import decode
from modelyard.records.plan import Artifact
from modelyard.state import StateDirectory

pytestmark = pytest.mark.acceptance


@pytest.fixture
def untouched(tmp_path: Path) -> Command:
    """A state directory that nobody has made yet."""
    return Command(tmp_path / "state")


@pytest.fixture
def kept_rates(kept_state: StateDirectory) -> Iterator[StateDirectory]:
    """The kept state directory, without what was measured there before."""
    kept_state.rates.unlink(missing_ok=True)
    yield kept_state
    kept_state.rates.unlink(missing_ok=True)


def report(command: Command, *arguments: str) -> Report:
    ended = command("doctor", "--json", *arguments)
    told = decode(ended.out.encode(), Report)
    assert ended.code == (0 if told.well else 1), ended
    return told


def test_this_machine_is_examined_and_nothing_is_made_of_it(untouched: Command) -> None:
    told = report(untouched)
    assert told.machine.fingerprint() == probe().fingerprint()
    assert told.details.allowed >= told.machine.cores >= 1
    assert told.rates is None and not untouched.state.exists()


def test_in_words_it_says_the_same_without_a_terminals_colours(untouched: Command) -> None:
    told, words = report(untouched), untouched("doctor")
    assert words.code == (0 if told.well else 1)
    assert told.machine.cpu_model in words.out and "\x1b" not in words.out
    for finding in told.findings:
        if finding.check not in ("memory", "disk"):
            assert finding.what in words.out


def test_the_memory_that_an_engine_takes_for_the_packaged_model_is_told(
    smollm2: Artifact, kept_state: StateDirectory, openvino: Installed
) -> None:
    told = report(Command(kept_state.root))
    seen = next(one for one in told.engines if one.name == openvino.engine)
    assert seen.installed and seen.build == "cpu"
    assert seen.memory_bytes is not None and seen.memory_bytes > smollm2.size_bytes


def test_the_machine_is_measured_with_the_engines_own_kernels(openvino: Installed, kept_rates: StateDirectory) -> None:
    told = report(Command(kept_rates.root), "--measure")
    rates = told.rates
    assert isinstance(rates, Rates) and rates == load_rates(kept_rates, told.machine.fingerprint())
    kernels = rates.of_engine(openvino.engine)
    assert kernels is not None and kernels.version == openvino.version
    assert rates.read_bytes_per_s.rounds >= 5 and kernels.gemm_per_s["f32"].rounds >= 5
    # Reading weights is reading memory: an engine cannot be faster at it than the machine, but for noise and caches.
    assert 0 < kernels.weight_read_bytes_per_s["f32"].median < 3 * rates.read_bytes_per_s.high
    assert kernels.layer_overhead_s is not None and 0 < kernels.layer_overhead_s.median < 0.1
    assert set(kernels.gemm_per_s) == set(kernels.kernels)
    # The next look finds it.
    assert report(Command(kept_rates.root)).rates == rates

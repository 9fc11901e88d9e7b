"""How fast this machine is: measured, kept, bound to the machine, and doubted where it was not calm."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.engines.contract import Installed
from modelyard.engines.registry import engine
from modelyard.errors import ModelyardError
from modelyard.hardware import bandwidth
from modelyard.hardware.details import affinity, look
from modelyard.hardware.machine import probe
from modelyard.hardware.noise import Times, processor_times, shares
from modelyard.hardware.rates import EngineRates, Rates, Spread, engine_rates, load_rates, save_rates
from modelyard.node import measuring
from modelyard.state import StateDirectory

STAT = """cpu  300 0 200 2000 100 0 50 150 0 0
cpu0 100 0 100 1000 50 0 25 75 0 0
cpu1 200 0 100 1000 50 0 25 75 0 0
cpu10 9 9 9 9 9 9 9 9 0 0
intr 12 0 3
ctxt 99
"""


def calm(**changes: Any) -> Rates:
    even = Spread(low=19e9, median=20e9, high=21e9, rounds=7)
    plain = Rates(
        machine="a" * 64, at=1.0, threads=2, buffer_bytes=1 << 28, read_bytes_per_s=even, copy_bytes_per_s=even
    )
    return msgspec.structs.replace(plain, **changes)


@given(st.lists(st.floats(1e-9, 1e15), min_size=1))
def test_a_spread_holds_all_of_its_rounds(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.low == min(values) <= spread.median <= max(values) == spread.high
    assert spread.rounds == len(values) and 0 <= spread.lag <= 1


def test_rates_are_kept_for_the_machine_that_they_were_measured_on(state: StateDirectory) -> None:
    assert load_rates(state, "a" * 64) is None
    rates = calm(engines=(EngineRates(engine="some", version="1", gemm_per_s={"f32": Spread.of([1.0])}),))
    save_rates(state, rates)
    assert load_rates(state, "a" * 64) == rates
    assert load_rates(state, "b" * 64) is None
    assert rates.of_engine("some") is rates.engines[0] and rates.of_engine("other") is None


def test_what_was_measured_in_calm_is_not_replaced_by_what_a_crowd_left(state: StateDirectory) -> None:
    quiet, crowded = calm(at=1.0), calm(at=2.0, others=0.9)
    assert save_rates(state, crowded) and save_rates(state, quiet)
    assert not save_rates(state, crowded) and load_rates(state, quiet.machine) == quiet
    assert save_rates(state, calm(at=3.0)), "calm replaces calm"
    newer = calm(at=4.0, others=0.9, engines=(EngineRates(engine="some", version="1"),))
    assert save_rates(state, newer), "an engine that was not measured before"
    assert save_rates(state, calm(at=5.0, others=0.9, machine="b" * 64)), "another machine"


RATES = EngineRates(
    engine="some",
    version="1",
    gemm_per_s={"f32": Spread(low=1e11, median=2e11, high=3e11, rounds=5)},
    weight_read_bytes_per_s={"u8": Spread(low=1e10, median=2e10, high=2.5e10, rounds=5)},
    layer_overhead_s=Spread(low=1e-5, median=2e-5, high=4e-5, rounds=5),
)


def test_a_step_is_bound_by_reading_or_computing_and_by_its_layers() -> None:
    # One token of a model of 1e9 weights in bytes: reading takes 50 ms, computing 10 ms, 32 layers 0.64 ms.
    decode = RATES.least_step_s(weight_bytes=1e9, stored="u8", operations=2e9, computed="f32", layers=32)
    assert decode is not None and decode.median == pytest.approx(0.05064)
    # A prompt of 100 tokens: computing takes a second.
    prefill = RATES.least_step_s(weight_bytes=1e9, stored="u8", operations=2e11, computed="f32", layers=32)
    assert prefill is not None and prefill.median == pytest.approx(1.00064)


def test_types_that_were_not_measured_give_no_bound() -> None:
    assert RATES.least_step_s(weight_bytes=1, stored="f32", operations=1, computed="f32", layers=1) is None
    assert RATES.least_step_s(weight_bytes=1, stored="u8", operations=1, computed="i8", layers=1) is None


@given(st.floats(0, 1e12), st.floats(0, 1e15), st.integers(0, 200))
def test_a_bound_has_its_ends_in_order_and_grows_with_the_work(weights: float, operations: float, layers: int) -> None:
    one = RATES.least_step_s(weight_bytes=weights, stored="u8", operations=operations, computed="f32", layers=layers)
    more = RATES.least_step_s(
        weight_bytes=weights * 2, stored="u8", operations=operations * 2, computed="f32", layers=layers + 1
    )
    assert one is not None and more is not None
    assert one.low <= one.median <= one.high
    assert one.median < more.median


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"schema": "machine-rates/v2"}', b"\xff\xfe"])
def test_rates_that_cannot_be_read_are_measured_again(state: StateDirectory, damage: bytes) -> None:
    state.rates.write_bytes(damage)
    assert load_rates(state, "a" * 64) is None


def test_a_calm_measurement_is_not_doubted_and_a_noisy_one_says_why() -> None:
    assert calm(stolen=0.0, others=0.01).doubts() == ()
    wide = Spread(low=1e9, median=15e9, high=20e9, rounds=7)
    assert calm(stolen=0.2, others=0.5, read_bytes_per_s=wide).doubts() == (
        "the hypervisor gave 20% of our processors' time to others",
        "other processes took 50% of our processors' time",
        "the middle round of the memory read was 25% slower than the best",
    )


def test_the_time_of_our_processors_is_counted_and_of_no_other() -> None:
    assert processor_times(STAT, {0, 1}) == (2800, 2100, 150)
    assert processor_times(STAT, {0}) == (1350, 1050, 75)
    assert processor_times("", {0}) == (0, 0, 0)
    assert processor_times("cpu0 broken\ncpuX 1\n\n", {0}) == (0, 0, 0)


def test_shares_of_the_time_between_two_looks() -> None:
    before, after = Times(1000, 500, 10, 100.0), Times(2000, 700, 110, 500.0)
    stolen, others = shares(before, after)
    assert stolen == pytest.approx(0.1)
    # 1000 ticks: 200 idle, 100 stolen, 400 ours, the other 300 are other people's.
    assert others == pytest.approx(0.3)
    assert shares(before, before) == (None, None)


@given(st.integers(0, 1 << 33), st.integers(0, 1 << 40))
def test_a_buffer_is_beyond_the_cache_and_leaves_most_of_the_memory(cache_bytes: int, free_bytes: int) -> None:
    size = bandwidth.buffer_size(cache_bytes, free_bytes)
    assert size <= free_bytes // 4
    assert size == free_bytes // 4 or size >= max(256 << 20, 4 * cache_bytes)


def test_memory_moves_on_every_processor_of_ours_at_once() -> None:
    before = affinity()
    measured = bandwidth.measure(sorted(before), 8 << 20, rounds=2)
    assert len(measured.read) == len(measured.copy) == 2
    assert all(rate > 1e6 for rate in (*measured.read, *measured.copy))
    assert measured.buffer_bytes <= 8 << 20 and affinity() == before


def test_an_engines_own_measurement_is_read_or_refused() -> None:
    told = json.dumps(
        {"gemm_per_s": {"f32": [1.0, 3.0, 2.0]}, "layer_overhead_s": [1e-5], "kernels": {"f32": "brgemm"}}
    )
    rates = engine_rates("some", "1", told)
    assert rates.gemm_per_s["f32"] == Spread(low=1.0, median=2.0, high=3.0, rounds=3)
    assert rates.layer_overhead_s == Spread.of([1e-5]) and rates.call_overhead_s is None
    for wrong in ("", "[]", '{"gemm_per_s": {"f32": ["fast"]}}', "progress"):
        with pytest.raises(ValueError):
            engine_rates("some", "1", wrong)


class Gauging:
    """An engine that measures itself with a program of ours in place of its own."""

    name = "some"

    def __init__(self, program: str) -> None:
        self.program = program

    def gauge(self, install: Installed, threads: int, buffer_bytes: int) -> tuple[str, ...]:
        return (install.python, "-c", self.program)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Little memory is moved, and one engine is installed."""
    installed = Installed(engine="some", version="7", python=sys.executable, root=str(tmp_path), lock_sha256="0")
    monkeypatch.setattr(bandwidth, "buffer_size", lambda *_: 32 << 20)
    monkeypatch.setattr(bandwidth, "_LEAST_PER_THREAD_BYTES", 1 << 20)
    monkeypatch.setattr(measuring, "list_environments", lambda _: (installed,))


def measure(state: StateDirectory, tmp_path: Path, *engines: Any) -> Rates:
    stages: list[str] = []
    rates = measuring.measure(state, probe(accelerators=()), look(tmp_path), engines, stages.append)
    assert stages[0] == "memory"
    return rates


@pytest.mark.usefixtures("small")
def test_a_measurement_is_kept_with_its_engines_and_taken_once(state: StateDirectory, tmp_path: Path) -> None:
    machine = probe(accelerators=())
    told = Gauging("print('layers'); print('{\"layer_overhead_s\": [2e-5]}')")
    rates = measure(state, tmp_path, told, engine("fake"))
    assert rates.machine == machine.fingerprint() and rates.threads == machine.cores
    assert [(one.engine, one.version) for one in rates.engines] == [("some", "7")]
    assert load_rates(state, machine.fingerprint()) == rates
    assert measuring.ensure_rates(state, machine, look(tmp_path), (told,), lambda _: None) == rates


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("program", "words"),
    [("raise SystemExit('no such kernel')", "no such kernel"), ("print('layers')", "not|malformed")],
)
def test_an_engine_that_cannot_be_measured_is_named_and_what_was_known_stays(
    state: StateDirectory, tmp_path: Path, program: str, words: str
) -> None:
    known = calm(machine=probe(accelerators=()).fingerprint())
    save_rates(state, known)
    with pytest.raises(ModelyardError, match="measuring some 7 failed"):
        measure(state, tmp_path, Gauging(program))
    assert load_rates(state, known.machine) == known


def test_a_machine_without_free_memory_is_not_measured(state: StateDirectory, tmp_path: Path) -> None:
    full = msgspec.structs.replace(probe(accelerators=()), available_bytes=64 << 20)
    with pytest.raises(ModelyardError, match="too little memory"):
        measuring.measure(state, full, look(tmp_path), (), lambda _: None)

"""Back-off, containment and permanent failures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.engines.contract import Failure
from modelyard.node.restart import (
    GiveUp,
    RestartHistory,
    RestartPolicy,
    StartAgain,
    after_failure,
    delay_s,
    started,
)

POLICY = RestartPolicy()
CRASHED = Failure(kind="crashed", cause="signal 11", fix="report it", permanent=False)


@pytest.mark.parametrize(("failures", "longest_s"), [(0, 0.5), (1, 1.0), (2, 2.0), (6, 32.0), (7, 60.0), (9999, 60.0)])
def test_backoff_doubles_up_to_the_cap(failures: int, longest_s: float) -> None:
    assert delay_s(failures, 1.0, POLICY) == longest_s


@given(st.integers(0, 100), st.floats(0, 1, exclude_max=True))
def test_jitter_is_full(failures: int, jitter: float) -> None:
    assert delay_s(failures, jitter, POLICY) == pytest.approx(jitter * delay_s(failures, 1.0, POLICY))


def test_a_permanent_failure_gives_up_at_the_first_exit() -> None:
    failure = Failure(kind="bad_config", cause="no such flag", fix="remove it", permanent=True)
    assert after_failure(RestartHistory(), failure, 1.0, 0.0, 0.5, POLICY) == GiveUp(failure=failure)


def test_five_starts_in_ten_minutes_are_a_crash_loop_that_names_the_last_cause() -> None:
    history = RestartHistory()
    for at in (0.0, 1.0, 2.0, 3.0, 4.0):
        assert isinstance(after_failure(history, CRASHED, at, 0.0, 0.0, POLICY), StartAgain)
        history = started(history, at, POLICY)
    decision = after_failure(history, CRASHED, 5.0, 0.0, 0.0, POLICY)
    assert isinstance(decision, GiveUp)
    assert decision.failure.cause == "crash loop: 5 starts in 10 min; the last one: signal 11"
    assert decision.failure.permanent


def test_starts_older_than_the_window_are_forgotten() -> None:
    history = RestartHistory(starts=(0.0, 1.0, 2.0, 3.0, 590.0))
    assert isinstance(after_failure(history, CRASHED, 599.9, 0.0, 0.0, POLICY), GiveUp)
    decision = after_failure(history, CRASHED, 600.0, 0.0, 0.0, POLICY)
    assert isinstance(decision, StartAgain)
    assert decision.history.starts == (1.0, 2.0, 3.0, 590.0)


@pytest.mark.parametrize(("healthy_s", "delay"), [(599.0, 8.0), (600.0, 0.5)])
def test_ten_healthy_minutes_reset_the_backoff(healthy_s: float, delay: float) -> None:
    decision = after_failure(RestartHistory(failures=4), CRASHED, 1000.0, healthy_s, 1.0, POLICY)
    assert isinstance(decision, StartAgain)
    assert decision.at == 1000.0 + delay

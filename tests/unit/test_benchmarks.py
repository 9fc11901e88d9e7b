"""The arithmetic of the benchmarks; what they measure is nobody's unit test."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.engine_load import completion_tokens
from benchmarks.figures import Budget, judge, percentile, ratio_interval, rotated
from benchmarks.gateway_load import first_difference
from benchmarks.gateway_texts import DONE, expected_stream, stream_event, unary_body, usage_event
from benchmarks.jobs import WrongResult
from benchmarks.wire import arrivals, events_of

SAMPLES = {"cpu_us": {"nginx": [10.0, 20.0, 10.0], "gateway": [20.0, 30.0, 40.0]}}


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([5, 1, 4, 2, 3], 50) == 3
    assert percentile(range(1, 101), 99) == 99
    assert percentile([7], 1) == 7
    with pytest.raises(ValueError, match="percentile"):
        percentile([], 50)


def test_a_ratio_to_nginx_is_taken_within_each_round() -> None:
    verdict = judge(Budget("cpu", "cpu_us", 2.0, "over", "nginx"), SAMPLES, "gateway")
    assert (verdict.spread.median, verdict.spread.low, verdict.spread.high) == (2.0, 1.5, 4.0)
    assert verdict.within


def test_a_budget_on_the_maximum_is_broken_by_one_round() -> None:
    budget = Budget("cpu", "cpu_us", 35, "alone", rounds="maximum")
    assert not judge(budget, SAMPLES, "gateway").within
    assert judge(budget, SAMPLES, "nginx").within


def test_an_added_cost_is_a_difference() -> None:
    assert judge(Budget("cpu", "cpu_us", 10, "less", "nginx"), SAMPLES, "gateway").judged == 10


def test_a_row_without_a_limit_breaks_nothing() -> None:
    assert judge(Budget("cpu", "cpu_us", None, "over", "nginx"), SAMPLES, "gateway").within


def test_every_subject_comes_first_in_its_turn() -> None:
    orders = [rotated(["a", "b", "c"], number) for number in range(3)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


def test_the_interval_of_a_ratio_agrees_with_a_worked_example() -> None:
    # Logarithms 0.0, 0.1, 0.2: mean 0.1, standard error 0.1 / sqrt(3), t(0.975, 2) = 4.303.
    interval = ratio_interval([1.0, math.exp(0.1), math.exp(0.2)], [1.0, 1.0, 1.0])
    half = 4.303 * 0.1 / math.sqrt(3)
    assert interval.mean == pytest.approx(math.exp(0.1))
    assert interval.low == pytest.approx(math.exp(0.1 - half))
    assert interval.high == pytest.approx(math.exp(0.1 + half))


def test_pairs_that_share_their_weather_give_a_narrow_interval() -> None:
    interval = ratio_interval([9.9, 99.0, 49.5], [10.0, 100.0, 50.0])
    assert interval.low == pytest.approx(0.99)
    assert interval.high == pytest.approx(0.99)


@pytest.mark.parametrize("size_bytes", [300, 800, 4500, 32 * 1024, 1024 * 1024])
def test_a_request_has_exactly_the_size_that_the_table_says(size_bytes: int) -> None:
    assert len(unary_body("mock", size_bytes)) == size_bytes


@given(st.integers(300, 20_000))
def test_a_request_of_any_size_is_exact(size_bytes: int) -> None:
    assert len(unary_body("mock", size_bytes)) == size_bytes


def test_no_two_events_of_the_mock_engine_are_alike() -> None:
    events = [stream_event(stream, index, 5) for stream in range(3) for index in range(5)]
    assert len(set(events)) == 15


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200))
def test_events_are_timed_by_the_piece_that_completes_them(sizes: list[int]) -> None:
    body, pieces, start = expected_stream(7, 4), [], 0
    for number, size in enumerate([*sizes, len(expected_stream(7, 4))]):
        if piece := body[start : start + size]:
            pieces.append((float(number), piece))
        start += size
    times = arrivals(pieces)
    assert len(times) == 5
    assert all(earlier <= later for earlier, later in pairwise(times))
    ends = [len(b"".join(events_of(body)[: count + 1])) for count in range(5)]
    for end, at in zip(ends, times, strict=True):
        assert sum(len(piece) for when, piece in pieces if when < at) < end
        assert sum(len(piece) for when, piece in pieces if when <= at) >= end


def test_comments_are_no_events() -> None:
    body = b": still here\n\n" + expected_stream(1, 2)
    assert b"".join(events_of(body)) == expected_stream(1, 2)
    assert arrivals([(1.0, b": still"), (2.0, b" here\n\n"), (3.0, expected_stream(1, 2))]) == [3.0, 3.0, 3.0]


def test_an_unfinished_event_is_not_dropped_from_the_comparison() -> None:
    assert events_of(b"data: 1\n\ndata: 2") == [b"data: 1\n\n", b"data: 2"]


def test_the_first_wrong_event_is_named() -> None:
    expected = events_of(expected_stream(3, 4))
    assert "event 2:" in first_difference(3, 200, [*expected[:2], *expected[3:]], expected)
    assert "event 4:" in first_difference(3, 200, expected[:4], expected)


def test_tokens_are_counted_by_the_engine_and_a_cut_stream_counts_nothing() -> None:
    events = stream_event(1, 0, 2) + stream_event(1, 1, 2)
    assert completion_tokens(events + usage_event(1, 2) + DONE) == 2
    with pytest.raises(WrongResult, match="without its end"):
        completion_tokens(events + usage_event(1, 2))
    with pytest.raises(WrongResult, match="without usage"):
        completion_tokens(events + DONE)

"""Trace context: read strictly, written anew, never copied."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.trace import STATE_BYTES, Trace, parse, span_id

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{PARENT}-01".encode()


def test_a_traceparent_is_read_and_our_span_goes_on_in_its_place() -> None:
    trace = parse(VALID, b"congo=t61rcWkgMzE")
    assert trace == Trace(TRACE, PARENT, sampled=True, state=b"congo=t61rcWkgMzE")
    assert trace.parent() == f"{PARENT}-01"
    assert trace.onward("req_00f067aa0ba902b7") == (
        f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\ntracestate: congo=t61rcWkgMzE\r\n".encode()
    )


def test_only_the_flag_that_we_know_is_passed_on() -> None:
    trace = parse(f"00-{TRACE}-{PARENT}-fe".encode())
    assert trace is not None and not trace.sampled
    assert trace.onward("req_00f067aa0ba902b7").endswith(b"-00\r\n")


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"00",
        VALID[:-1],
        VALID + b"-",
        VALID + b"0",
        VALID.upper(),
        VALID.replace(b"00-", b"ff-", 1),
        VALID.replace(b"00-", b"0-", 1),
        f"00-{'0' * 32}-{PARENT}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE}-{PARENT}-0g".encode(),
        f"00-{TRACE[:-1]}.-{PARENT}-01".encode(),
        f"cc-{TRACE}-{PARENT}-01.what".encode(),
        VALID + b"\n",
        VALID + b", " + VALID,
    ],
)
def test_what_is_not_a_traceparent_begins_a_new_trace(wrong: bytes) -> None:
    assert parse(wrong, b"congo=1") is None


def test_a_later_version_is_read_as_far_as_we_know_it() -> None:
    trace = parse(f"cc-{TRACE}-{PARENT}-01-what-comes-later".encode())
    assert trace is not None and (trace.trace_id, trace.parent_id, trace.sampled) == (TRACE, PARENT, True)
    assert trace.onward("req_00f067aa0ba902b7").startswith(b"traceparent: 00-")


def test_space_around_the_values_means_nothing() -> None:
    assert parse(b" \t" + VALID + b" ", b" a=1 ,\t, b=2 ,") == Trace(TRACE, PARENT, True, b"a=1,b=2")


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (b"", b""),
        (b"a=1,a=2,b=3", b"a=1,b=3"),
        (b"fw529a3039@dt=FfAAA,*x=1", b""),
        (b"foo=1=2", b""),
        (b"Foo=1", b""),
        (b"foo =1", b""),
        (b"foo=\x7f", b""),
        (b"foo", b""),
        (b",".join(b"k%d=1" % number for number in range(32)), b",".join(b"k%d=1" % number for number in range(32))),
        (b",".join(b"k%d=1" % number for number in range(33)), b""),
        (b"long=" + b"x" * 200 + b",a=1," + b"b=" + b"y" * 120 + b",c=" + b"z" * 250, b"a=1,b=" + b"y" * 120),
    ],
)
def test_a_tracestate_is_checked_member_by_member(state: bytes, kept: bytes) -> None:
    trace = parse(VALID, state)
    assert trace is not None and trace.state == kept


@given(st.binary(max_size=120), st.binary(max_size=900))
def test_whatever_is_sent_what_goes_on_is_two_clean_lines_or_nothing(traceparent: bytes, tracestate: bytes) -> None:
    for sent in (traceparent, VALID):
        trace = parse(sent, tracestate)
        if trace is not None:
            lines = trace.onward("req_00f067aa0ba902b7")
            assert re.fullmatch(rb"traceparent: [0-9a-f-]{55}\r\n(tracestate: [\x20-\x7e]{1,512}\r\n)?", lines)


@given(st.lists(st.from_regex(r"[a-z]{1,8}=[!-+\--<>-~]{1,160}", fullmatch=True), min_size=1, max_size=40))
def test_too_long_a_state_loses_whole_members_and_keeps_their_order(members: list[str]) -> None:
    trace = parse(VALID, ",".join(members).encode())
    assert trace is not None and len(trace.state) <= STATE_BYTES
    kept = trace.state.decode().split(",") if trace.state else []
    rest = iter(members)
    assert all(one in rest for one in kept)


def test_our_span_is_the_requests_own_number_or_follows_from_any_other_id() -> None:
    assert span_id("req_0123456789abcdef") == "0123456789abcdef"
    assert re.fullmatch("[0-9a-f]{16}", span_id("something-else")) and span_id("a") != span_id("b")

"""From tokens to text in the OpenVINO stepping process: whole characters, no stop strings, exact joins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from programs import load_program

text = load_program("openvino_text")


def drop_unfinished(tokens: list[int]) -> str:
    """A byte-level detokeniser that drops what is no character, as OpenVINO's does."""
    return bytes(tokens).decode("utf-8", errors="ignore")


def replace_unfinished(tokens: list[int]) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


def strip_leading_space(tokens: list[int]) -> str:
    """A detokeniser that strips the space at the beginning of a text, as SentencePiece models do."""
    return drop_unfinished(tokens).removeprefix(" ")


def stream(decode: Any, tokens: list[int]) -> list[str]:
    tail = text.TextTail()
    deltas: list[str] = []
    for index, token in enumerate(tokens):
        deltas.append(tail.advance(decode(tail.window([token])), last=index == len(tokens) - 1))
        if (window := tail.anchor()) is not None:
            tail.shorten(decode(window))
    return deltas


@pytest.mark.parametrize("decode", [drop_unfinished, replace_unfinished, strip_leading_space])
@given(st.text(min_size=1, max_size=120))
def test_deltas_joined_equal_the_text_decoded_at_once(decode: Any, written: str) -> None:
    tokens = list(written.encode("utf-8", errors="ignore"))
    if tokens:
        assert "".join(stream(decode, tokens)) == decode(tokens)


@pytest.mark.parametrize("decode", [drop_unfinished, replace_unfinished])
def test_half_a_character_is_never_shown(decode: Any) -> None:
    assert stream(decode, list("a漢🙂".encode())) == ["a", "", "", "漢", "", "", "", "🙂"]


def test_an_unfinished_end_is_shown_only_when_it_is_the_end() -> None:
    assert stream(replace_unfinished, list("a漢".encode())[:-1]) == ["a", "", "\ufffd"]


def test_a_long_text_is_decoded_in_a_short_window() -> None:
    seen: list[int] = []

    def decode(tokens: list[int]) -> str:
        seen.append(len(tokens))
        return drop_unfinished(tokens)

    assert "".join(stream(decode, list(b"word " * 200))) == "word " * 200
    assert max(seen) < 40


def run_filter(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    stop = text.StopFilter(stops)
    shown: list[str] = []
    for piece in pieces:
        now, met = stop.push(piece)
        shown.append(now)
        if met:
            return shown, True
    return [*shown, stop.flush()], False


def test_a_stop_string_across_pieces_never_appears() -> None:
    assert run_filter(["STOP"], ["abc S", "TO", "P def"]) == (["abc ", "", ""], True)


def test_a_beginning_that_comes_to_nothing_is_shown_later() -> None:
    assert run_filter(["STOP"], ["abc S", "TOX"]) == (["abc ", "STOX", ""], False)


def test_what_was_held_back_is_shown_at_the_end() -> None:
    assert run_filter(["\n\n"], ["abc\n"]) == (["abc", "\n"], False)


@given(
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.text("ab", max_size=4), max_size=12),
)
def test_streaming_stops_where_searching_the_whole_text_would(stops: list[str], pieces: list[str]) -> None:
    shown, met = run_filter(stops, pieces)
    whole = "".join(pieces)
    ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
    assert met == bool(ends)
    if not met:
        assert "".join(shown) == whole
    else:
        assert whole.startswith("".join(shown))
        assert not any(stop in "".join(shown) for stop in stops)

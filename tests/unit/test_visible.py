"""What a model says never steers a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.cli.visible import log_line, visible

ANY_TEXT = st.text(alphabet=st.characters(), max_size=200)


@given(ANY_TEXT)
def test_no_control_character_is_left_but_newline_and_tab(text: str) -> None:
    left = {letter for letter in visible(text) if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")}
    assert left <= {"\n", "\t"}


@given(ANY_TEXT, st.integers(0, 200))
def test_a_text_may_come_in_pieces(text: str, at: int) -> None:
    assert visible(text[:at]) + visible(text[at:]) == visible(text)


@given(ANY_TEXT)
def test_twice_is_once(text: str) -> None:
    assert visible(visible(text)) == visible(text)


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs", "M"]), max_size=200))
def test_ordinary_text_of_any_language_is_as_it_was(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("attack", "shown"),
    [
        ("\x1b[2J\x1b[H", "␛[2J␛[H"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\", "␛]8;;http://evil␛\\click␛]8;;␛\\"),
        ("\x1b]52;c;cm0gLXJm\x07", "␛]52;c;cm0gLXJm␇"),
        ("\x9b31m", "<9B>31m"),
        ("over\rwritten", "over␍written"),
        ("gone\b\b\b\b", "gone␈␈␈␈"),
        ("\x7f", "␡"),
        ("access\u202etxt.exe", "access<202E>txt.exe"),
        ("\ud800", "\ufffd"),
        ("two\n\tlines", "two\n\tlines"),
        ("Müller 日本語 🙂", "Müller 日本語 🙂"),
    ],
)
def test_what_would_steer_a_terminal_is_shown(attack: str, shown: str) -> None:
    assert visible(attack) == shown


def test_a_log_loses_its_colours_and_nothing_else() -> None:
    assert log_line("\x1b[1;31mERROR\x1b[0m no such file\r") == "ERROR no such file"
    assert log_line("\x1b]0;title\x07") == "␛]0;title␇"

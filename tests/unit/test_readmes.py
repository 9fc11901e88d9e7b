"""The Chinese README says what the English one says: the same commands, the same rows, the same links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()
YES_AND_NO = {"yes": "有", "not yet": "尚无"}


def blocks(text: str) -> list[str]:
    return re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)


def rows(text: str) -> list[tuple[str, str, str]]:
    """What there is, whether it is in this version, what shows it."""
    found = re.findall(r"^\| ?(.*?) ?\| ?(.*?) ?\| ?(.*?) ?\|$", text, re.MULTILINE)
    return [(one[0], one[1], one[2]) for one in found]


def links(text: str) -> set[str]:
    return set(re.findall(r"\]\(([^)\s]+)\)", text)) - {"README.md", "README.zh-CN.md"}


def code(text: str) -> list[str]:
    return re.findall(r"`[^`]+`", text)


def test_the_commands_and_what_they_print_are_the_same() -> None:
    assert blocks(CHINESE) == blocks(ENGLISH)


def test_every_row_of_the_table_is_there_in_its_order() -> None:
    shown = [code(row[2]) or links(row[2]) for row in rows(ENGLISH)]
    assert [code(row[2]) or links(row[2]) for row in rows(CHINESE)] == shown


@pytest.mark.parametrize("word", YES_AND_NO)
def test_what_is_there_is_there_in_both(word: str) -> None:
    english = [number for number, row in enumerate(rows(ENGLISH)) if row[1] == word]
    chinese = [number for number, row in enumerate(rows(CHINESE)) if row[1] == YES_AND_NO[word]]
    assert english == chinese and english


def test_the_parts_and_links_are_the_same() -> None:
    assert len(re.findall(r"^## ", CHINESE, re.MULTILINE)) == len(re.findall(r"^## ", ENGLISH, re.MULTILINE))
    assert links(CHINESE) == links(ENGLISH)


def test_numbers_are_the_same() -> None:
    """135 million and 1.35 亿 are one number in two ways of counting."""
    outside = [re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL) for text in (ENGLISH, CHINESE)]
    english, chinese = (sorted(re.findall(r"\d+(?:\.\d+)?", text)) for text in outside)
    assert [number for number in chinese if number != "1.35"] == [number for number in english if number != "135"]

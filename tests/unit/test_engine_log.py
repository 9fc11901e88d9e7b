"""Lines of an engine's output."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from modelyard.node.engine_log import MAX_LINE_CHARS, EngineLog, Lines, escape


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_lines_do_not_depend_on_how_the_bytes_arrive(pieces: list[bytes]) -> None:
    at_once, piecewise = Lines(), Lines()
    whole = at_once.feed(b"".join(pieces)) + at_once.finish()
    parts = [line for piece in pieces for line in piecewise.feed(piece)] + piecewise.finish()
    assert parts == whole


@given(st.binary(max_size=300))
def test_no_line_holds_anything_that_a_terminal_or_a_parser_obeys(line: bytes) -> None:
    text = escape(line)
    assert text.replace("\t", "").isprintable()
    assert len(text.splitlines()) <= 1
    text.encode()


def test_readable_text_stays_as_it_is() -> None:
    assert escape("tab\there, größe, 模型, 🙂".encode()) == "tab\there, größe, 模型, 🙂"


def test_an_endless_line_is_cut_and_not_kept() -> None:
    lines = Lines()
    cut = [line for _ in range(100) for line in lines.feed(b"x" * 1000)]
    assert {len(line) for line in cut} == {MAX_LINE_CHARS}
    assert len(cut) == 100_000 // MAX_LINE_CHARS


def test_a_line_of_many_escapes_is_cut_too() -> None:
    text = escape(b"\x00" * MAX_LINE_CHARS)
    assert len(text) == MAX_LINE_CHARS
    assert text.endswith("…")


def test_a_log_that_cannot_be_written_keeps_its_tail_and_heals(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "r0.log"
    log = EngineLog(str(path), max_bytes=1000, keep=1)
    log.write(["lost"])
    path.parent.mkdir()
    log.write(["kept"])
    log.close()
    assert list(log.tail) == ["lost", "kept"]
    assert [line.split(" ", 1)[1] for line in path.read_text().splitlines()] == ["kept"]


def test_a_log_without_older_files_begins_anew(tmp_path: Path) -> None:
    log = EngineLog(str(tmp_path / "r0.log"), max_bytes=100, keep=0)
    for number in range(10):
        log.write([f"line {number}"])
    log.close()
    assert [file.name for file in tmp_path.iterdir()] == ["r0.log"]
    assert (tmp_path / "r0.log").read_text().endswith("line 9\n")

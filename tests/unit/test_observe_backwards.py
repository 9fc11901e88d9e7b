"""Journals read from their end: the newest first, one request found among many, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from journal_records import answered, write
from modelyard.observe import backwards
from modelyard.observe.backwards import find, lines_backwards, newest


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=30), st.integers(1, 40))
def test_lines_come_last_first_whatever_the_block(lines: list[bytes], block_bytes: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file"
        path.write_bytes(b"".join(line + b"\n" for line in lines) + b"not finished")
        assert list(lines_backwards(path, block_bytes=block_bytes)) == lines[::-1]


def test_an_absent_file_and_one_without_a_whole_line_have_no_lines(tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(b"torn")
    assert list(lines_backwards(tmp_path / "absent")) == list(lines_backwards(tmp_path / "torn")) == []


def test_the_newest_of_several_workers_come_first_by_when_they_ended(tmp_path: Path) -> None:
    slow = answered(1, total_s=8.5)
    write(tmp_path, answered(2), slow, answered(3, worker="ffff0000"), answered(8, worker="ffff0000"))
    assert [one.request_id[-1] for one in newest(tmp_path)] == ["8", "1", "3", "2"]
    assert next(newest(tmp_path / "absent"), None) is None


@pytest.mark.parametrize("block_bytes", [600, 1024 * 1024])
def test_a_request_is_found_by_its_id(tmp_path: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backwards, "BLOCK_BYTES", block_bytes)
    write(tmp_path, *(answered(number) for number in range(1, 40)))
    write(tmp_path, *(answered(number, worker="ffff0000") for number in range(1, 40)))
    for number in (1, 20, 39):
        assert find(tmp_path, f"req_ffff0000{number:08x}") == answered(number, worker="ffff0000")
    assert find(tmp_path, "req_ffff000000000000") is None


def test_a_request_is_found_behind_a_line_that_a_full_disk_cut_short(tmp_path: Path) -> None:
    write(tmp_path, answered(1))
    path = next(tmp_path.iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:60] + whole)
    assert find(tmp_path, answered(1).request_id) == answered(1)


def test_a_request_in_a_file_of_another_name_is_found_too(tmp_path: Path) -> None:
    write(tmp_path, answered(1))
    next(tmp_path.iterdir()).rename(tmp_path / "old.ndjson")
    assert find(tmp_path, answered(1).request_id) == answered(1)


def test_what_a_client_made_us_write_is_not_taken_for_an_id(tmp_path: Path) -> None:
    write(tmp_path, answered(1, error='"request_id":"req_0a1b2c3d000000aa"'))
    assert find(tmp_path, "req_0a1b2c3d000000aa") is None

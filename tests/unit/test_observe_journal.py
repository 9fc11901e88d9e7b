"""Reading journals in steps, whatever a crash left in them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.observe.journal import BEGINNING, Checkpoint, Step, read_journal
from modelyard.observe.seen import MAX_RUNS, SeenRecords
from modelyard.observe.unsent import Unsent
from modelyard.records.base import encode
from modelyard.records.journal import RequestRecord, Sent


def record(sequence: int, worker: str = "w1") -> RequestRecord:
    return RequestRecord(
        request_id=f"{worker}-{sequence}",
        worker=worker,
        sequence=sequence,
        at=1000.0 + sequence,
        endpoint="/v1/chat/completions",
        status=200,
        outcome="complete",
        error='a client\'s own {"schema":"request/v1"',
    )


def line(sequence: int, worker: str = "w1") -> bytes:
    return encode(record(sequence, worker)) + b"\n"


def append(folder: Path, data: bytes, worker: str = "w1") -> None:
    with (folder / f"gateway-{worker}.ndjson").open("ab") as file:
        file.write(data)


def test_an_empty_folder_and_an_absent_one_hold_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        step = read_journal(folder)
        assert (step.records, step.unreadable, step.checkpoint, step.more) == ((), 0, BEGINNING, False)


def test_several_workers_are_read_and_each_stays_in_order(tmp_path: Path) -> None:
    append(tmp_path, line(1) + line(2))
    append(tmp_path, line(1, "w2"), "w2")
    assert read_journal(tmp_path).records == (record(1), record(2), record(1, "w2"))


def test_a_torn_last_line_is_left_until_it_is_whole(tmp_path: Path) -> None:
    whole = line(2)
    append(tmp_path, line(1) + whole[:40])
    first = read_journal(tmp_path)
    assert first.records == (record(1),) and first.unreadable == 0 and not first.more
    append(tmp_path, whole[40:])
    second = read_journal(tmp_path, first.checkpoint)
    assert second.records == (record(2),)
    assert read_journal(tmp_path, second.checkpoint).records == ()


def test_lines_of_a_newer_version_and_damaged_ones_are_counted_and_passed_over(tmp_path: Path) -> None:
    append(tmp_path, line(1) + b'{"schema":"request/v9","sequence":2}\n' + b"\x00" * 64 + b"\n{}\n" + line(3))
    step = read_journal(tmp_path)
    assert step.records == (record(1), record(3)) and step.unreadable == 3


def test_the_record_after_a_write_that_was_cut_short_is_found(tmp_path: Path) -> None:
    append(tmp_path, line(1)[:50] + line(2) + line(3))
    step = read_journal(tmp_path)
    assert step.records == (record(2), record(3)) and step.unreadable == 1


def test_a_line_longer_than_a_step_does_not_stop_the_reader(tmp_path: Path) -> None:
    append(tmp_path, b"x" * 5000 + b"\n" + line(1))
    checkpoint, found, steps = BEGINNING, list[RequestRecord](), 0
    while True:
        step = read_journal(tmp_path, checkpoint, step_bytes=1000)
        checkpoint, steps = step.checkpoint, steps + 1
        found += step.records
        if not step.more:
            break
        assert steps < 20
    assert found == [record(1)]


def test_a_long_journal_is_read_in_bounded_steps(tmp_path: Path) -> None:
    size = len(line(1))
    append(tmp_path, b"".join(line(1) for _ in range(10)))
    append(tmp_path, b"".join(line(1, "w2") for _ in range(10)), "w2")
    step = read_journal(tmp_path, step_bytes=3 * size + 5)
    assert len(step.records) == 3 and step.more


def test_a_file_that_was_replaced_is_read_anew_and_a_lost_one_is_forgotten(tmp_path: Path) -> None:
    append(tmp_path, line(1) + line(2))
    append(tmp_path, line(1, "w2"), "w2")
    checkpoint = read_journal(tmp_path).checkpoint
    (tmp_path / "gateway-w2.ndjson").unlink()
    (tmp_path / "gateway-w1.ndjson").write_bytes(line(7))
    step = read_journal(tmp_path, checkpoint)
    assert step.records == (record(7),)
    assert step.checkpoint == Checkpoint(offsets={"gateway-w1.ndjson": len(line(7))})


@given(st.lists(st.integers(0, 60), max_size=200))
def test_seen_records_agree_with_a_set(numbers: list[int]) -> None:
    seen, expected = SeenRecords(), set[int]()
    for number in numbers:
        assert seen.add(record(number)) is (number not in expected)
        expected.add(number)


def test_seen_records_of_different_workers_do_not_meet() -> None:
    seen = SeenRecords()
    assert seen.add(record(1, "w1")) and seen.add(record(1, "w2")) and not seen.add(record(1, "w1"))


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_is_remembered_does_not_grow_with_the_records(shuffled: bool) -> None:
    seen, numbers = SeenRecords(), list(range(3000))
    if shuffled:
        random.Random(1).shuffle(numbers)
    for number in numbers:
        seen.add(record(number))
    assert len(seen._runs["w1"]) <= (MAX_RUNS if shuffled else 1)


# What was sent.


def sent(sequence: int, worker: str = "w1") -> bytes:
    return encode(Sent(worker=worker, sequence=sequence, at=1.0)) + b"\n"


def test_what_a_worker_says_was_sent_is_no_unreadable_line(tmp_path: Path) -> None:
    append(tmp_path, line(1) + sent(1) + line(2)[:50] + sent(2) + line(3))
    step = read_journal(tmp_path)
    assert step.records == (record(1), record(3))
    assert [one.sequence for one in step.sent] == [1, 2] and step.unreadable == 1


def test_records_behind_the_last_word_of_their_worker_are_marked(tmp_path: Path) -> None:
    unsent = Unsent()
    append(tmp_path, line(1) + line(2) + sent(1) + line(3))
    append(tmp_path, line(1, "w2") + sent(1, "w2"), "w2")
    step = read_journal(tmp_path)
    unsent.take(step)
    assert unsent.records() == (record(2), record(3))
    append(tmp_path, sent(3) + line(4))
    unsent.take(read_journal(tmp_path, step.checkpoint))
    assert unsent.records() == (record(4),)


def test_a_journal_without_a_word_is_not_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelyard.observe.unsent.MOST", 3)
    unsent = Unsent()
    found = tuple(record(number) for number in range(10))
    unsent.take(Step(records=found, unreadable=0, checkpoint=BEGINNING, more=False))
    assert unsent.records() == found[-3:]

"""The journal on a disk that fills up, and the rules about where a gateway may listen."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from gateway_fakes import World, answer, chat, post

from modelyard.errors import AddressInUse, UsageError
from modelyard.gateway.journal import JournalWriter
from modelyard.gateway.listen import Tls, check_bind, listening_socket
from modelyard.gateway.upstream import parse_address
from modelyard.observe.journal import read_journal
from modelyard.records.journal import RequestRecord

Write = Callable[[int, bytes], int]


def write(journal: JournalWriter, name: str) -> None:
    journal.write(
        RequestRecord(
            request_id=name,
            worker=journal.worker,
            sequence=journal.sequence,
            at=1.0,
            endpoint="/x",
            status=200,
            outcome="complete",
        )
    )


def names(folder: Path) -> list[str]:
    return [record.request_id for record in read_journal(folder).records]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How many bytes each coming write may take: None for all, -1 for an error."""
    plan: list[int | None] = []
    real: Write = os.write

    def limited(descriptor: int, data: bytes) -> int:
        allowed = plan.pop(0) if plan else None
        if allowed == -1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data if allowed is None else data[:allowed])

    monkeypatch.setattr(os, "write", limited)
    return plan


def test_records_stand_in_the_file_at_once_and_numbered(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path)
    for name in "abc":
        write(journal, name)
    records = read_journal(tmp_path).records
    assert [(record.request_id, record.sequence) for record in records] == [("a", 1), ("b", 2), ("c", 3)]
    [path] = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_once_a_second_it_is_said_up_to_where_answers_are_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Awaitable[object]]
) -> None:
    monkeypatch.setattr("modelyard.gateway.journal.SYNC_INTERVAL_S", 0.01)
    journal, is_sent = JournalWriter(tmp_path), False

    def said() -> list[int]:
        return [sent.sequence for sent in read_journal(tmp_path).sent]

    syncing = asyncio.create_task(journal.sync_forever(lambda: is_sent))
    write(journal, "a")
    write(journal, "b")
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert said() == [], "a reader is so slow that the end of its answer waits here"
    is_sent = True
    await eventually(lambda: said() == [2])
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert said() == [2], "nothing new is said of nothing new"
    syncing.cancel()


@pytest.mark.parametrize("is_sent", [True, False])
def test_the_last_word_is_said_at_an_orderly_end(tmp_path: Path, is_sent: bool) -> None:
    journal = JournalWriter(tmp_path)
    write(journal, "a")
    journal.close(is_sent=is_sent)
    assert [sent.sequence for sent in read_journal(tmp_path).sent] == [1] * is_sent


def test_an_answer_that_its_client_does_not_read_is_not_sent(tmp_path: Path) -> None:
    world = World(tmp_path)
    client, transport = world.client()
    engine, _ = world.engine()
    client.data_received(post(chat()))
    transport.unread = 10
    assert world.service.is_sent(), "an answer that has not ended has no record either"
    engine.data_received(answer())
    assert not world.service.is_sent()
    transport.unread = 0
    assert world.service.is_sent()


def test_a_full_disk_loses_records_and_says_so_but_ends_nothing(
    tmp_path: Path, disk: list[int | None], capsys: pytest.CaptureFixture[str]
) -> None:
    journal = JournalWriter(tmp_path)
    disk += [None, -1, None]
    for name in "abc":
        write(journal, name)
    assert names(tmp_path) == ["a", "c"]
    assert journal.failed == 1
    assert "request b is not recorded" in capsys.readouterr().out


def test_a_record_written_in_part_is_written_again_on_a_line_of_its_own(tmp_path: Path, disk: list[int | None]) -> None:
    journal = JournalWriter(tmp_path)
    disk += [None, 20]
    for name in "abc":
        write(journal, name)
    step = read_journal(tmp_path)
    assert [record.request_id for record in step.records] == ["a", "b", "c"]
    assert (step.unreadable, journal.failed) == (1, 0)


@pytest.mark.parametrize(
    "failing",
    [
        [20, -1],  # the line break that ends the torn line
        [20, 0],
        [20, None, -1],  # the record after it
        [20, None, 30],  # again only a part of it
        [0, None, 0],
    ],
)
def test_a_torn_line_never_takes_the_next_record_with_it(
    tmp_path: Path, disk: list[int | None], failing: list[int | None]
) -> None:
    journal = JournalWriter(tmp_path)
    disk += [None, *failing]
    for name in "abcd":
        write(journal, name)
    step = read_journal(tmp_path)
    assert [record.request_id for record in step.records] == ["a", "c", "d"]
    assert journal.failed == 1
    assert b'}{"schema"' not in next(tmp_path.iterdir()).read_bytes()


def test_without_a_folder_requests_are_only_numbered() -> None:
    journal = JournalWriter(None)
    write(journal, "a")
    assert journal.sequence == 2
    journal.close()


# Where to listen, and where engines are.


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_neither_key_nor_tls(host: str) -> None:
    check_bind(host, has_key=False, has_tls=False, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "127.example.com", "localhost.evil"])
def test_beyond_loopback_key_and_tls_are_demanded(host: str) -> None:
    for has_key, has_tls, missing in ((False, False, "a key and TLS"), (True, False, "TLS"), (False, True, "a key")):
        with pytest.raises(AddressInUse, match=f"{missing} is missing") as refused:
            check_bind(host, has_key=has_key, has_tls=has_tls, insecure=False)
        assert refused.value.exit_code == 8
        assert "--insecure-listen" in refused.value.hint
    check_bind(host, has_key=True, has_tls=True, insecure=False)
    check_bind(host, has_key=False, has_tls=False, insecure=True)


def test_a_taken_port_is_named_with_a_way_to_see_who_has_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{port}") as refused:
            listening_socket("127.0.0.1", port)
    assert f"sport = :{port}" in refused.value.hint


def test_an_address_of_another_machine_is_not_called_a_taken_port() -> None:
    with pytest.raises(AddressInUse) as refused:
        listening_socket("192.0.2.1", 80)
    assert "ss -ltnp" not in refused.value.hint


def test_files_that_make_no_certificate_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("nothing")
    for certificate in (tmp_path / "x", tmp_path / "absent"):
        with pytest.raises(UsageError, match="cannot be used"):
            Tls(certificate, tmp_path / "x").context()


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("unix:/run/engine.sock", "/run/engine.sock"),
        ("http://127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("http://127.0.0.1:8000/", ("127.0.0.1", 8000)),
        ("http://engine", ("engine", 80)),
        ("http://[::1]:8000", ("::1", 8000)),
    ],
)
def test_an_engines_address(address: str, parsed: object) -> None:
    assert parse_address(address) == parsed


@pytest.mark.parametrize(
    "address",
    ["", "unix:", "unix:relative", "https://x", "http://", "http://x:0", "http://x:99999", "http://x:y", "http://x/v1",
     "http://u:p@x", "http://x?y", "127.0.0.1:80"],
)  # fmt: skip
def test_what_is_no_engines_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="not an engine's address"):
        parse_address(address)

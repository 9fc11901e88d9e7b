"""What a gateway knows of the last minute when it begins: all that came to an engine and ended in it."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway import seeding as seeding_module
from modelyard.gateway.accounts import Account, Accounts, rate_limit_lines
from modelyard.gateway.bounds import MinuteWindow
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.seeding import Seeding
from modelyard.records.base import encode
from modelyard.records.journal import RequestRecord, Sent
from modelyard.records.keys import KeyCreated, KeyRecord, Limits

NOON = 1_700_049_600.0
LIMITS = Limits(requests_per_minute=100_000, tokens_per_minute=100_000)


def record(number: int, ended_ago_s: float, worker: str = "w", key_id: str = "k", **fields: Any) -> RequestRecord:
    plain: dict[str, Any] = {
        "status": 200,
        "outcome": "complete",
        "attempts": 1,
        "completion_tokens": 10,
        "total_s": 2.0,
    }
    return RequestRecord(
        request_id=f"req_{worker}{number}",
        worker=worker,
        sequence=number,
        at=NOON - ended_ago_s - 2.0,
        endpoint="/v1/chat/completions",
        key_id=key_id,
        **{**plain, **fields},
    )


def write(folder: Path, *records: RequestRecord | Sent, worker: str = "w") -> None:
    with (folder / f"gateway-{worker}.ndjson").open("ab") as file:
        file.write(b"".join(encode(one) + b"\n" for one in records))


def begun(folder: Path, limits: Limits = LIMITS) -> Account:
    """The account of key k, as a gateway that begins at noon has it."""
    keyring = Keyring()
    keyring.apply(KeyCreated(key=KeyRecord(id="k", sha256="f" * 64, name="k", created_at=0.0, limits=limits)))
    accounts = Accounts(keyring)
    Seeding(keyring, folder / "spending.json", folder, lambda: NOON).keys_changed(accounts)
    [account] = accounts.line(keyring.keys["k"])
    return account


def test_what_was_used_of_the_minute_is_used_after_a_restart(tmp_path: Path) -> None:
    write(tmp_path, record(1, 70.0), record(2, 50.0), record(3, 1.0), record(4, 1.0, key_id="unknown"))
    write(tmp_path, record(1, 30.0, worker="v"), worker="v")
    write(tmp_path, record(5, 0.5, attempts=0, status=429, outcome="refused", completion_tokens=0))
    account = begun(tmp_path, Limits(requests_per_minute=5, tokens_per_minute=100))
    lines = rate_limit_lines((account,), monotonic())
    assert "x-ratelimit-remaining-requests: 2\r\n" in lines and "x-ratelimit-remaining-tokens: 70\r\n" in lines


def test_what_no_gateway_wrote_and_what_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "gateway-w.ndjson"
    path.write_bytes(b'nonsense\n{"schema":"request/v1","cut short' + encode(record(1, 5.0)) + b"\n")
    write(tmp_path, Sent(worker="w", sequence=1, at=NOON - 1.0), record(2, 0.5))
    with path.open("ab") as file:
        file.write(encode(record(3, 0.1))[:80])
    assert begun(tmp_path).requests.used == 2  # type: ignore[union-attr]


@given(st.lists(st.floats(0.0, 90.0), max_size=40), st.integers(1, 900))
def test_wherever_blocks_end_each_request_of_the_minute_counts_once(
    tmp_path_factory: pytest.TempPathFactory, agos: list[float], block: int
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    write(folder, *(record(number, ago) for number, ago in enumerate(sorted(agos, reverse=True))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeding_module, "_BACK_BYTES", block + 500)
        account = begun(folder)
    # The second at the edge may count or not: windows are counted in whole seconds.
    sure, perhaps = sum(ago < 58.9 for ago in agos), sum(ago <= 61.1 for ago in agos)
    assert account.requests is not None and account.tokens is not None
    assert sure <= account.requests.used <= perhaps
    assert account.tokens.used == 10 * account.requests.used


@pytest.mark.parametrize("block", [1, 7, 100])
def test_a_line_that_is_longer_than_a_block_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(seeding_module, "_BACK_BYTES", block)
    write(tmp_path, record(1, 2.0), record(2, 1.0))
    assert begun(tmp_path).requests.used == 0  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 9)), max_size=20))
def test_what_is_learned_late_counts_as_if_it_had_been_told_at_once(taken: list[tuple[float, int]]) -> None:
    at_once, late, now = MinuteWindow(1000), MinuteWindow(1000), 1100.0
    for ago, amount in sorted(taken, reverse=True):
        at_once.take(amount, now - ago)
    for ago, amount in taken:
        late.put(amount, now - ago, now)
    for later in (0.0, 13.0, 47.5, 61.0):
        assert late.left(now + later) == at_once.left(now + later)

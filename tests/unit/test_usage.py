"""Usage equals the journal to the token, however it is read; and what budgets are held against equals both."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.cli.usage import bar
from modelyard.control.key_routes import as_csv
from modelyard.gateway.accounts import Accounts, Asked
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.seeding import Seeding, sizes_of, spent_until_now
from modelyard.observe.journal import BEGINNING, read_journal
from modelyard.observe.usage import Usage, UsageRow
from modelyard.records.base import encode
from modelyard.records.journal import RequestRecord
from modelyard.records.keys import Budgets, KeyCreated, KeyRecord
from modelyard.records.spending import DAY_S, Spent, period_of

NOON = 1_700_049_600.0  # 2023-11-15 12:00 UTC
TODAY = int(NOON // DAY_S)
TEAM = KeyRecord(id="team-1", sha256="", name="research", created_at=0.0)
BELOW = KeyRecord(id="team-2", sha256="", name="vision", created_at=0.0, parent="team-1")
KEYS = {
    key.id: key
    for key in (
        TEAM,
        BELOW,
        KeyRecord(id="a", sha256="a", name="ada", created_at=0.0, parent="team-1"),
        KeyRecord(id="b", sha256="b", name="bob", created_at=0.0, parent="team-2"),
        KeyRecord(id="c", sha256="c", name="=cmd()", created_at=0.0),
    )
}


def record(sequence: int, key_id: str = "a", worker: str = "w1", at: float = NOON, **fields: object) -> RequestRecord:
    plain: dict[str, object] = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cost_pico": 7,
        "deployment": "m",
        "outcome": "complete",
    }
    return RequestRecord(
        request_id=f"{worker}-{sequence}",
        worker=worker,
        sequence=sequence,
        at=at,
        endpoint="/v1/chat/completions",
        status=200,
        key_id=key_id,
        **{**plain, **fields},  # type: ignore[arg-type]
    )


def write(folder: Path, *records: RequestRecord) -> None:
    for one in records:
        with (folder / f"gateway-{one.worker}.ndjson").open("ab") as file:
            file.write(encode(one) + b"\n")


def whole(folder: Path) -> Usage:
    usage, more = Usage(), True
    while more:
        step = read_journal(folder, usage.checkpoint)
        usage.take(step)
        more = step.more
    return usage


def by_name(rows: tuple[UsageRow, ...]) -> dict[str, tuple[int, int]]:
    return {row.name: (row.requests, row.cost_pico) for row in rows}


def test_each_request_counts_for_its_key_every_team_above_it_its_deployment_and_its_day() -> None:
    usage = Usage()
    usage.count([record(1), record(2, "b", deployment="n"), record(3, "b"), record(4, "c", at=NOON - DAY_S)])
    assert by_name(usage.rows("key", KEYS)) == {"ada": (1, 7), "bob": (2, 14), "=cmd()": (1, 7)}
    assert by_name(usage.rows("team", KEYS)) == {"research": (3, 21), "vision": (2, 14), "(no team)": (1, 7)}
    assert by_name(usage.rows("deployment", KEYS)) == {"m": (3, 21), "n": (1, 7)}
    assert by_name(usage.rows("day", KEYS)) == {"2023-11-14": (1, 7), "2023-11-15": (3, 21)}
    assert by_name(usage.rows("day", KEYS, since=TODAY)) == {"2023-11-15": (3, 21)}
    assert by_name(usage.rows("day", KEYS, until=TODAY - 1)) == {"2023-11-14": (1, 7)}


def test_a_row_says_tokens_cost_and_what_was_estimated() -> None:
    usage = Usage()
    usage.count(
        [
            record(1, cached_tokens=4, cost_pico=1_500_000_000_000),
            record(2, outcome="client_gone", usage_source="estimated", cost_pico=0),
        ]
    )
    (row,) = usage.rows("key", KEYS)
    assert row == UsageRow(
        id="a",
        name="ada",
        requests=2,
        complete=1,
        prompt_tokens=20,
        cached_tokens=4,
        completion_tokens=10,
        estimated=1,
        cost_pico=1_500_000_000_000,
        cost="1.50",
    )


def test_the_costliest_comes_first_and_days_come_in_order() -> None:
    usage = Usage()
    usage.count([record(1, "a"), record(2, "b", cost_pico=9), record(3, "c", at=NOON - DAY_S, cost_pico=100)])
    assert [row.id for row in usage.rows("key", KEYS)] == ["c", "b", "a"]
    assert [row.id for row in usage.rows("day", KEYS)] == ["2023-11-14", "2023-11-15"]


def test_csv_is_read_back_as_it_was_and_no_name_becomes_a_formula() -> None:
    usage = Usage()
    usage.count([record(1, "c"), record(2, "a")])
    rows = list(csv.DictReader(io.StringIO(as_csv(usage.rows("key", KEYS)))))
    assert {row["name"] for row in rows} == {"ada", "'=cmd()"}
    assert sum(int(row["cost_pico"]) for row in rows) == 14


@pytest.mark.parametrize(
    ("size", "most", "drawn"), [(0, 9, ""), (9, 9, "█" * 20), (1, 160, "▏"), (5, 0, ""), (1, 2, "█" * 10)]
)
def test_bars_are_in_proportion(size: int, most: int, drawn: str) -> None:
    assert bar(size, most) == drawn


RECORDS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 1000),
        st.integers(0, 1000),
        st.integers(0, 10**15),
        st.integers(-40, 0),
        st.sampled_from(("w1", "w2")),
    ),
    max_size=40,
)


def made_of(drawn: list[tuple[str, int, int, int, int, str]]) -> list[RequestRecord]:
    numbers = dict.fromkeys(("w1", "w2"), 0)
    found: list[RequestRecord] = []
    for key_id, prompt, completion, cost, days, worker in drawn:
        numbers[worker] += 1
        at = NOON + days * DAY_S
        found.append(
            record(
                numbers[worker],
                key_id,
                worker,
                at,
                prompt_tokens=prompt,
                completion_tokens=completion,
                cost_pico=cost,
            )
        )
    return found


@given(RECORDS, st.integers(700, 4000), st.integers(0, 40), st.randoms())
def test_any_cut_of_the_journal_and_any_rereading_give_the_sums_of_the_records(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[str, int, int, int, int, str]],
    step_bytes: int,
    split: int,
    rng: random.Random,
) -> None:
    folder, records = tmp_path_factory.mktemp("journal"), made_of(drawn)
    usage = Usage()
    for part in (records[:split], records[split:]):
        write(folder, *part)
        more, checkpoints = True, [BEGINNING]
        while more:
            step = read_journal(folder, usage.checkpoint, step_bytes=step_bytes)
            usage.take(step)
            checkpoints.append(usage.checkpoint)
            more = step.more
        # A reader that went back, as one does after a restart from an older checkpoint.
        usage.count(read_journal(folder, rng.choice(checkpoints)).records)
    for day in {int(one.at // DAY_S) for one in records}:
        for key_id in "abc":
            mine = [one for one in records if one.key_id == key_id and int(one.at // DAY_S) == day]
            rows = {row.id: row for row in usage.rows("key", KEYS, since=day, until=day)}
            row = rows.get(key_id, UsageRow(id=key_id, name=""))
            assert row.requests == len(mine)
            assert row.prompt_tokens == sum(one.prompt_tokens for one in mine)
            assert row.completion_tokens == sum(one.completion_tokens for one in mine)
            assert row.cost_pico == sum(one.cost_pico for one in mine)
    assert usage.rows("key", KEYS) == whole(folder).rows("key", KEYS), "a restart sums the same"


def test_a_record_that_is_left_out_or_counted_twice_would_be_seen() -> None:
    """That the sums can differ at all: the property above has something to find."""
    honest, short, double = Usage(), Usage(), Usage()
    honest.count([record(1), record(2)])
    short.count([record(1)])
    double.count([record(1), record(2), record(2, worker="w9")])
    assert len({usage.rows("key", KEYS) for usage in (honest, short, double)}) == 3


# What budgets are held against.


@given(RECORDS, st.integers(0, 40), st.integers(-35, 0))
def test_wherever_control_stopped_a_gateway_that_starts_knows_all_that_stands_in_the_journal(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[str, int, int, int, int, str]],
    split: int,
    written_days: int,
) -> None:
    folder, records = tmp_path_factory.mktemp("journal"), sorted(made_of(drawn), key=lambda one: one.at)
    known = [one for one in records[:split] if one.at <= NOON + written_days * DAY_S]
    path = folder / "spending.json"
    write(folder, *known)
    path.write_bytes(encode(whole(folder).spending(NOON + written_days * DAY_S)))
    write(folder, *records[len(known) :])
    period = period_of(NOON)
    found = spent_until_now(path, folder, sizes_of(folder), period)
    for key_id in "abc":
        month = [one for one in records if one.key_id == key_id and period_of(one.at).month == period.month]
        today = [one for one in month if int(one.at // DAY_S) == period.day]
        assert found.get(key_id, Spent()) == Spent(
            day_tokens=sum(one.prompt_tokens + one.completion_tokens for one in today),
            day_pico=sum(one.cost_pico for one in today),
            month_tokens=sum(one.prompt_tokens + one.completion_tokens for one in month),
            month_pico=sum(one.cost_pico for one in month),
        )


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema":"spending/v9"}'])
def test_without_controls_sums_the_whole_journal_is_read(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, record(1), record(2))
    with (tmp_path / "gateway-w1.ndjson").open("ab") as file:
        file.write(b'{"schema":"request/v1","cut short' + encode(record(3)) + b"\nnonsense\n" + encode(record(4))[:50])
    if damage:
        (tmp_path / "spending.json").write_bytes(damage)
    found = spent_until_now(tmp_path / "spending.json", tmp_path, sizes_of(tmp_path), period_of(NOON))
    assert found["a"] == Spent(day_tokens=45, day_pico=21, month_tokens=45, month_pico=21)


def test_a_budget_that_was_spent_before_the_gateway_began_is_spent(tmp_path: Path) -> None:
    keyring = Keyring()
    for key in (
        KeyRecord(id="team-1", sha256="", name="research", created_at=0.0, budgets=Budgets(tokens_per_day=40)),
        *(key for key in KEYS.values() if key.id != "team-1"),
    ):
        keyring.apply(KeyCreated(key=key))
    write(tmp_path, record(1, "a"), record(2, "b"), record(3, "c"))
    accounts = Accounts(keyring)
    Seeding(keyring, tmp_path / "spending.json", tmp_path, lambda: NOON).keys_changed(accounts)
    line = accounts.line(keyring.keys["b"])
    with pytest.raises(Refusal, match="10 left, this request may take 11 \\(team 'research'\\)"):
        accounts.reserve(line, Asked(11, 0, NOON), 0.0, "req_1")
    accounts.reserve(line, Asked(10, 0, NOON), 0.0, "req_2")

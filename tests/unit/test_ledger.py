"""The campaign's bookkeeping finds what it is there to find."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modelyard.records.journal import RequestRecord
from modelyard.selftest.ledger import Ledger, Told
from modelyard.selftest.outcome import Outcome, Tally


def name(number: int) -> str:
    return f"req_aaaaaaaa{number:08x}"


def record(number: int, **fields: int) -> RequestRecord:
    return RequestRecord(
        request_id=name(number),
        worker="aaaaaaaa",
        sequence=number,
        at=1.0,
        endpoint="/v1/chat/completions",
        status=200,
        outcome="complete",
        key_id="k",
        **{"prompt_tokens": 5, "completion_tokens": 2, "cost_pico": 9, **fields},  # type: ignore[arg-type]
    )


def told(**fields: int) -> Told:
    return Told("k", 200, **{"prompt_tokens": 5, "completion_tokens": 2, "cost_pico": 9, **fields})


def after(steps: Callable[[Ledger], None], *, in_flight: int = 0, marked: frozenset[str] = frozenset()) -> Outcome:
    tally = Tally()
    ledger = Ledger(tally)
    steps(ledger)
    ledger.close(in_flight, marked)
    return tally.outcome()


def test_what_was_told_and_recorded_in_whichever_order_is_sound() -> None:
    def steps(ledger: Ledger) -> None:
        ledger.told(name(1), told())
        ledger.recorded(record(1))
        ledger.recorded(record(2))
        ledger.told(name(2), told())
        ledger.recorded(record(3, completion_tokens=1))
        ledger.told(name(3), Told("k", 200, is_cut=True))

    found = after(steps)
    assert found.holds
    assert found.counts == {"acknowledged and recorded": 2, "left by its client and recorded": 1}


def _lost(ledger: Ledger) -> None:
    ledger.told(name(1), told())


def _twice(ledger: Ledger) -> None:
    ledger.told(name(1), told())
    ledger.recorded(record(1))
    ledger.recorded(record(1))


def _other_tokens(ledger: Ledger) -> None:
    ledger.told(name(1), told())
    ledger.recorded(record(1, completion_tokens=3))


def _other_cost(ledger: Ledger) -> None:
    ledger.recorded(record(1, cost_pico=8))
    ledger.told(name(1), told())


def _surplus(ledger: Ledger) -> None:
    ledger.recorded(record(1))


@pytest.mark.parametrize("steps", [_lost, _twice, _other_tokens, _other_cost, _surplus])
def test_each_way_to_differ_is_found(steps: Callable[[Ledger], None]) -> None:
    assert not after(steps).holds


def test_a_surplus_record_needs_a_request_in_flight_and_a_mark() -> None:
    mark = frozenset({name(1)})
    assert after(_surplus, in_flight=1, marked=mark).holds
    assert not after(_surplus, in_flight=1).holds
    assert not after(_surplus, in_flight=0, marked=mark).holds

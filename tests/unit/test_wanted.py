"""What is wanted, as files; and the news of a deployment, in order."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from modelyard.clock import Clock
from modelyard.control import wanted as desired
from modelyard.control.steps import KEPT, Steps
from modelyard.errors import UsageError
from modelyard.records.base import UnreadableRecord
from modelyard.records.topology import Policy, Prices
from modelyard.state import StateDirectory
from yards import fake_wanted


def test_what_is_wanted_is_read_back_as_it_was(state: StateDirectory) -> None:
    wanted = fake_wanted(replicas=2, facts=False, tokens=3)
    desired.save(state, wanted)
    assert desired.load(state, "small") == wanted
    assert desired.names(state) == ("small",)
    assert (state.deployments / "small.json").stat().st_mode & 0o077 == 0


def test_what_is_removed_is_not_wanted_any_more(state: StateDirectory) -> None:
    desired.save(state, fake_wanted())
    desired.remove(state, "small")
    desired.remove(state, "small")
    assert desired.load(state, "small") is None
    assert desired.names(state) == ()


def test_prices_of_one_state_directory_are_in_one_currency(state: StateDirectory) -> None:
    """What a key spends is one sum over the deployments, whichever file each of them came from."""

    def priced(name: str, currency: str) -> desired.Wanted:
        prices = Prices(currency=currency, input_pico=1, cached_input_pico=1, output_pico=1)
        return replace(fake_wanted(name), policy=Policy(prices=prices))

    desired.save(state, priced("a", "EUR"))
    desired.save(state, priced("a", "USD"))
    desired.save(state, fake_wanted("free"))
    with pytest.raises(UsageError, match="'b' has prices in EUR, where 'a' has them in USD"):
        desired.save(state, priced("b", "EUR"))


def test_a_file_of_another_version_is_named_not_guessed(state: StateDirectory) -> None:
    (state.deployments / "small.json").write_text('{"schema":"wanted/v99"}')
    with pytest.raises(UnreadableRecord, match="Wanted"):
        desired.load(state, "small")


def test_steps_are_numbered_and_the_oldest_are_forgotten() -> None:
    steps = Steps(Clock(wall=lambda: 5.0))
    begin = steps.last
    for number in range(KEPT + 10):
        steps.add("check", str(number), replica="small-0", ok=number % 2 == 0)
    kept = steps.after(begin)
    assert len(kept) == KEPT
    assert [step.number for step in kept] == list(range(begin + 11, begin + KEPT + 11))
    assert steps.after(steps.last - 1) == kept[-1:]
    assert steps.after(steps.last) == ()
    assert (kept[-1].text, kept[-1].at, kept[-1].ok) == (str(KEPT + 9), 5.0, False)


def test_numbers_rise_over_a_restart_however_much_was_told_before() -> None:
    before = Steps(Clock(wall=lambda: 1_000.0))
    for number in range(900):
        before.add("check", str(number))
    after = Steps(Clock(wall=lambda: 1_001.0))
    after.add("launch", "the engine is starting")
    assert after.after(before.last), "who watched the one before hears of it"

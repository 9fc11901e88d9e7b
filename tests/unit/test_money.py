"""Money in whole numbers: what people write, exactly, or not at all."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.records.money import pico_of, pico_per_token, show_pico
from modelyard.records.topology import Prices


@pytest.mark.parametrize(
    ("written", "pico"),
    [("5.00", 5 * 10**12), (5, 5 * 10**12), (0.1, 10**11), ("0.000000000001", 1), ("0", 0), (" 2 ", 2 * 10**12)],
)
def test_amounts_are_read_exactly(written: object, pico: int) -> None:
    assert pico_of(written) == pico


@pytest.mark.parametrize("written", ["", "five", "-1", "nan", "inf", "1e13", "0.0000000000001", True, None, [1]])
def test_what_is_no_exact_amount_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"amount|decimals"):
        pico_of(written)


@pytest.mark.parametrize(("price", "pico"), [("0.15", 150_000), (0.6, 600_000), (3, 3_000_000), ("0.000001", 1)])
def test_a_price_for_a_million_is_whole_pico_for_one(price: object, pico: int) -> None:
    assert pico_per_token(price) == pico


def test_a_price_with_more_decimals_than_can_be_exact_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 6 decimals"):
        pico_per_token("0.0000001")


@given(st.integers(-(10**24), 10**24))
def test_what_is_shown_is_the_exact_amount(pico: int) -> None:
    assert Decimal(show_pico(pico)).scaleb(12) == pico


@given(st.decimals(0, 1000, places=6), st.integers(0, 10**9))
def test_the_cost_of_any_number_of_tokens_is_exact(price: Decimal, tokens: int) -> None:
    pico = pico_per_token(str(price))
    prices = Prices(currency="EUR", input_pico=pico, cached_input_pico=0, output_pico=0)
    assert Decimal(prices.cost_pico(tokens, 0, 0)) == price * tokens * 10**6


def test_cached_tokens_have_their_own_price_and_are_never_more_than_the_prompt() -> None:
    prices = Prices(currency="EUR", input_pico=10, cached_input_pico=1, output_pico=100)
    assert prices.cost_pico(7, 5, 3) == 2 * 10 + 5 * 1 + 3 * 100
    assert prices.cost_pico(7, 9, 0) == 7

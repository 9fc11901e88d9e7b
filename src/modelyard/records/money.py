"""Money as whole numbers: pico, millionths of a millionth of a currency's unit. No sum of them is ever rounded.

A price of 1.00 for a million tokens is 10^6 pico for each, so prices with up to six decimals are exact."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

PICO_DIGITS = 12
# A price for a million tokens, in pico for one of them, has six digits less.
_PRICE_DIGITS = PICO_DIGITS - 6
_MOST = Decimal(10) ** 12


def pico_of(amount: object) -> int:
    """Pico of an amount as people write it (5, "5.00", 0.25). Raises ValueError where that is no exact amount."""
    return _scaled(amount, PICO_DIGITS)


def pico_per_token(price: object) -> int:
    """Pico for one token at a price for a million. Raises ValueError where the price is not exact in them."""
    return _scaled(price, _PRICE_DIGITS)


def show_pico(pico: int) -> str:
    """The exact amount: at least two decimals, more where they are not zero."""
    sign, (whole, part) = "-" * (pico < 0), divmod(abs(pico), 10**PICO_DIGITS)
    decimals = f"{part:0{PICO_DIGITS}d}".rstrip("0")
    return f"{sign}{whole}.{decimals:0<2}"


def _scaled(amount: object, digits: int) -> int:
    if isinstance(amount, bool) or not isinstance(amount, str | int | float):
        raise ValueError(f"{amount!r} is no amount: write for example 0.25")
    try:
        # repr gives back the shortest decimal that a float was written as.
        value = Decimal(amount.strip() if isinstance(amount, str) else repr(amount))
    except InvalidOperation:
        value = Decimal("nan")
    if not value.is_finite() or not 0 <= value < _MOST:
        raise ValueError(f"{amount!r} is no amount of at least 0: write for example 0.25")
    scaled = value.scaleb(digits)
    if scaled != scaled.to_integral_value():
        raise ValueError(f"{amount!r} has more than {digits} decimals")
    return int(scaled)

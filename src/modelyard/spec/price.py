"""Prices as people write them: an amount for a million tokens."""

from __future__ import annotations

from modelyard.records.money import pico_per_token

PATTERN = r"^[0-9]+(\.[0-9]{1,6})?$"


class Price(int):
    """Pico for one token. 0.15, "0.15" and 3 are read as amounts for a million tokens, exactly."""

    @classmethod
    def parse(cls, written: object) -> Price:
        """Raises ValueError, in words that a user can act on."""
        return cls(pico_per_token(written))

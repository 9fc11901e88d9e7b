"""When evidence must be renewed, and what a busy replica means for it."""

from __future__ import annotations

import pytest

from modelyard.control.reproof import RENEW_BEFORE_S, due
from modelyard.records.evidence import Evidence
from modelyard.records.fingerprint import Fingerprint


def evidence(expires_at: float) -> Evidence:
    return Evidence(
        deployment="d",
        check="chat",
        claim="a chat question is answered",
        bound="text",
        predicted="text",
        measured="text",
        verdict="green",
        command="modelyard verify d",
        at=0.0,
        expires_at=expires_at,
        duration_s=1.0,
        fingerprint=Fingerprint(artifact="a", engine="e", configuration="c", machine="m"),
    )


@pytest.mark.parametrize(
    ("now", "when"),
    [(0.0, "no"), (999.0, "no"), (1000.0, "soon"), (RENEW_BEFORE_S + 999, "soon"), (RENEW_BEFORE_S + 1000, "expired")],
)
def test_the_first_check_to_expire_decides(now: float, when: str) -> None:
    first = RENEW_BEFORE_S + 1000
    assert due([evidence(first + 5), evidence(first)], now) == when


def test_what_was_never_proved_is_not_renewed() -> None:
    assert due([], 1e12) == "no"

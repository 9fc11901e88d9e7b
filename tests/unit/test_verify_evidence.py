"""Evidence on disk: what is known of a deployment now, and whether it still proves what must be proved."""

from __future__ import annotations

import stat
from typing import Literal

import pytest

from modelyard.records.evidence import Evidence
from modelyard.records.fingerprint import Fingerprint
from modelyard.state import StateDirectory
from modelyard.verify.evidence import KEPT_REPORTS, latest, save, still_proved
from modelyard.verify.report import Report

HERE = Fingerprint(artifact="a", engine="e", configuration="c", machine="m")
ELSEWHERE = Fingerprint(artifact="a", engine="e", configuration="c", machine="other")


def evidence(check: str, verdict: Literal["green", "red"] = "green", *, at: float = 100.0) -> Evidence:
    return Evidence(
        deployment="small",
        check=check,
        claim="it holds",
        bound="always",
        predicted="yes",
        measured="yes" if verdict == "green" else "no",
        verdict=verdict,
        command="modelyard verify small",
        at=at,
        expires_at=at + 50,
        duration_s=0.1,
        fingerprint=HERE,
    )


def report(*found: Evidence) -> Report:
    return Report(deployment="small", evidence=found, advice={}, duration_s=0.1)


def test_what_was_saved_is_read_back_and_only_its_owner_can_read_it(state: StateDirectory) -> None:
    path = save(state, report(evidence("chat"), evidence("stop", "red")))
    assert latest(state, "small") == (evidence("chat"), evidence("stop", "red"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_deployment_that_was_never_verified_has_no_evidence(state: StateDirectory) -> None:
    assert latest(state, "small") == ()


def test_the_newest_report_wins_check_by_check_whatever_the_clock_said(state: StateDirectory) -> None:
    save(state, report(evidence("chat", at=500.0), evidence("stop", at=500.0)))
    save(state, report(evidence("chat", "red", at=100.0)))
    assert {one.check: one.verdict for one in latest(state, "small")} == {"chat": "red", "stop": "green"}


def test_deployments_do_not_share_evidence(state: StateDirectory) -> None:
    save(state, report(evidence("chat")))
    assert latest(state, "smaller") == ()


@pytest.mark.parametrize("damage", [b"", b'{"schema":"report/v9"}', b"\xff\xfe"])
def test_evidence_older_than_an_unreadable_report_no_longer_counts(state: StateDirectory, damage: bytes) -> None:
    save(state, report(evidence("chat")))
    save(state, report(evidence("chat", "red"))).write_bytes(damage)
    assert latest(state, "small") == ()
    save(state, report(evidence("stop")))
    assert [one.check for one in latest(state, "small")] == ["stop"]


def test_superseded_reports_are_dropped(state: StateDirectory) -> None:
    for number in range(KEPT_REPORTS + 3):
        save(state, report(evidence("chat", at=float(number))))
    assert len(list((state.evidence / "small").iterdir())) == KEPT_REPORTS
    assert [one.at for one in latest(state, "small")] == [KEPT_REPORTS + 2.0]


def test_many_small_reports_do_not_push_out_the_only_proof_of_another_check(state: StateDirectory) -> None:
    save(state, report(evidence("stop"), evidence("chat")))
    for _ in range(KEPT_REPORTS + 3):
        save(state, report(evidence("chat")))
    assert {one.check for one in latest(state, "small")} == {"chat", "stop"}
    assert len(list((state.evidence / "small").iterdir())) == KEPT_REPORTS + 1


def test_dropping_an_unreadable_report_does_not_bring_older_evidence_back(state: StateDirectory) -> None:
    save(state, report(evidence("stop")))
    save(state, report(evidence("chat"))).write_bytes(b"")
    for _ in range(KEPT_REPORTS):
        save(state, report(evidence("chat")))
    assert [one.check for one in latest(state, "small")] == ["chat"]


def test_files_of_others_in_the_folder_are_ignored(state: StateDirectory) -> None:
    save(state, report(evidence("chat")))
    (state.evidence / "small" / ".00000002.json.torn").write_bytes(b"{")
    (state.evidence / "small" / "notes.json").write_bytes(b"{")
    assert [one.check for one in latest(state, "small")] == ["chat"]
    assert save(state, report(evidence("chat"))).name == "00000002.json"


BOTH = (evidence("chat"), evidence("stop"))


@pytest.mark.parametrize(
    ("found", "required", "fingerprint", "now", "proved"),
    [
        (BOTH, {"chat", "stop"}, HERE, 149.0, True),
        (BOTH, {"chat"}, HERE, 149.0, True),
        (BOTH, {"chat", "stop"}, HERE, 150.0, False),
        (BOTH, {"chat", "stop"}, ELSEWHERE, 149.0, False),
        (BOTH, {"chat", "stop", "usage"}, HERE, 149.0, False),
        ((evidence("chat"), evidence("stop", "red")), {"chat", "stop"}, HERE, 149.0, False),
        ((), {"chat"}, HERE, 149.0, False),
        (BOTH, set[str](), HERE, 149.0, False),
    ],
    ids=["valid", "more-than-asked", "expired", "other-machine", "one-missing", "one-red", "none", "nothing-required"],
)
def test_a_route_is_still_proved_only_by_valid_greens_for_every_required_check(
    found: tuple[Evidence, ...], required: set[str], fingerprint: Fingerprint, now: float, proved: bool
) -> None:
    assert still_proved(found, required, fingerprint, now) is proved

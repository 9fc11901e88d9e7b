"""A request's part in what becomes of engines: whether it is suspected to have ended one, and what clears it."""

from __future__ import annotations

from time import monotonic as now

import msgspec

from modelyard.gateway.admission import Admission
from modelyard.gateway.asked import Asked
from modelyard.gateway.attempt import Attempt, Failure
from modelyard.gateway.poison import fingerprint

# What an engine says last before it ends may not arrive.
UNCERTAIN_PIECES = 2


class Suspected(Asked):
    """`fingerprint` is that of what was asked at first, from when it is needed: the rest of a stream that another
    replica is asked for has another body. `asking.suspect` bears it while the request is isolated; it `has_passed`
    once it was."""

    fingerprint = b""
    has_passed = False

    def remember_body(self) -> bytes:
        """To be called before the body changes. Returns the fingerprint."""
        self.fingerprint = self.fingerprint or fingerprint(self.endpoint, self.body)
        return self.fingerprint

    def suspect(self, admission: Admission) -> None:
        """Ask for a seat as a suspect, if it is one."""
        found = self.remember_body()
        suspect = found if admission.suspects.verdict(found) else b""
        self.has_passed = False
        if suspect != self.asking.suspect:
            self.asking = msgspec.structs.replace(self.asking, suspect=suspect)

    def lost(self, admission: Admission, attempt: Attempt, failure: Failure) -> None:
        """Its engine may have died, and this request may be why. What was sent on a connection that had been idle, and
        could not be sent on a fresh one, was lost all the same."""
        at = now()
        if attempt.sendings and failure.kind in ("lost", "unconnected"):
            sent_as = "isolated" if self.asking.suspect else "passed" if self.has_passed else ""
            pieces = attempt.events() if attempt.relaying else 0
            admission.lost(attempt.seats, self.remember_body(), at, sent_as=sent_as, pieces=pieces)
            self.worker.doubts.raised.set()
        if attempt.refused:
            admission.suspects.died(attempt.seats.launch, at)

    def look_whether_passed(self, admission: Admission, attempt: Attempt) -> None:
        """A suspect that has come further than where it was lost before needs to be isolated no more: to the first
        piece of its answer, or beyond as many as there were."""
        lost_after = admission.suspects.pieces(self.fingerprint)
        is_beyond = attempt.relaying and attempt.events() > (lost_after + UNCERTAIN_PIECES if lost_after else 0)
        if is_beyond and admission.pass_by(attempt.seats):
            self.has_passed = True
            self.asking = msgspec.structs.replace(self.asking, suspect=b"")

    def cleared(self, admission: Admission, attempt: Attempt) -> None:
        """The engine has answered: it lives, and this request does not end it."""
        admission.suspects.answered(self.remember_body())
        admission.suspects.lived(attempt.seats.launch, attempt.began)

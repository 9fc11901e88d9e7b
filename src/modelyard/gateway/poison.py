"""Which request ended the engine: who was there when a launch died, who is suspected of it, who is sent no more.

A launch that loses a connection is in doubt until it is known to have died, or to live. Whoever was in flight at one
that died is a suspect. That is most of the time a whole batch of which one is to blame, so a suspect is sent again
*isolated*: never two of them to one launch at a time. Whoever is the only one at a launch that
dies, and was there when others died, `limit` in all, is convicted. A suspect that is answered is none.

State without I/O; times are monotonic seconds. Of a request nothing is kept but its fingerprint, a keyed hash."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from modelyard.gateway.refusals import Refusal, poison_request

# Another in each process: a fingerprint says nothing to anybody else.
_KEY = secrets.token_bytes(32)
# What nothing more is heard of is forgotten after so long. Engines are mended: a convict too may try again.
CONVICT_S = 3600.0
SUSPECT_S = 600.0
# A launch that is neither seen to take a connection nor to refuse one, nor taken out of the topology, counts as alive.
DOUBT_S = 10.0
MOST_SUSPECTS = 1024
MOST_ENDS = 64

Launch = tuple[str, str]
Verdict = Literal["", "suspect", "undecided", "convicted"]
# How it was sent to the launch: as the only suspect there, as one that was it until it had passed the point where it
# was lost before, or like any other request.
SentAs = Literal["isolated", "passed", ""]


def fingerprint(endpoint: str, body: bytes) -> bytes:
    """Of what an engine is asked: 16 bytes."""
    digest = blake2b(endpoint.encode(), digest_size=16, key=_KEY)
    digest.update(b"\n")
    digest.update(body)
    return digest.digest()


@dataclass(slots=True)
class _Suspect:
    """`doubts` are the launches it was lost at of which it is not known whether they died; `pieces` how many pieces of
    its answer there were, at most, when it was lost."""

    until: float
    deaths: int = 0
    doubts: set[Launch] = field(default_factory=set[Launch])
    pieces: int = 0
    convicted_by: Launch | None = None


@dataclass(slots=True)
class _End:
    """Who lost a connection at one launch, from `since` to `last`, and how each had been sent there."""

    since: float
    last: float
    is_death: bool = False
    present: dict[bytes, SentAs] = field(default_factory=dict[bytes, SentAs])

    def sole(self) -> bytes | None:
        """The only suspect that was there. Those that had passed the point where they were lost before are looked at
        only where no isolated one was."""
        isolated = [one for one, sent_as in self.present.items() if sent_as == "isolated"]
        blamed = isolated or [one for one, sent_as in self.present.items() if sent_as == "passed"]
        return blamed[0] if len(blamed) == 1 else None


class Suspects:
    """Of one deployment. A launch is a replica's name and its launch; its death counts once, for everyone who was lost
    there, also those of whom it is heard later. With a `limit` of 0 nobody is suspected."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._known: dict[bytes, _Suspect] = {}
        self._ends: dict[Launch, _End] = {}

    def __bool__(self) -> bool:
        return bool(self._known or self._ends)

    def verdict(self, fingerprint: bytes) -> Verdict:
        """ "suspect": it may be sent, isolated. "undecided": not before it is known what became of the launches that it
        was lost at."""
        suspect = self._known.get(fingerprint)
        if suspect is None:
            return ""
        if suspect.convicted_by is not None:
            return "convicted"
        is_last = suspect.deaths + len(suspect.doubts) >= self.limit
        return "undecided" if suspect.doubts and is_last else "suspect"

    def pieces(self, fingerprint: bytes) -> int:
        """How many pieces of its answer had been there, at most, when it was lost: so far it has to come once more."""
        suspect = self._known.get(fingerprint)
        return suspect.pieces if suspect is not None else 0

    def refusal(self, fingerprint: bytes, now: float) -> Refusal | None:
        """What a convict is told (422); None for any other."""
        suspect = self._known.get(fingerprint)
        if suspect is None or suspect.convicted_by is None:
            return None
        return poison_request(suspect.deaths, suspect.until - now)

    def is_doubted(self, launch: Launch) -> bool:
        """It lost a connection, and was neither seen to live since nor to have died."""
        end = self._ends.get(launch)
        return end is not None and not end.is_death

    def is_dead(self, launch: Launch) -> bool:
        end = self._ends.get(launch)
        return end is not None and end.is_death

    def doubted(self) -> tuple[Launch, ...]:
        """Launches of which it is not known whether they died."""
        return tuple(launch for launch, end in self._ends.items() if not end.is_death)

    # What happens.

    def lost(self, launch: Launch, fingerprint: bytes, now: float, *, sent_as: SentAs = "", pieces: int = 0) -> None:
        """A connection was lost in the middle of this request, after so many pieces of its answer."""
        if not self.limit:
            return
        end = self._ends.get(launch) or self._new_end(launch, now)
        end.last = now
        suspect = self._known.get(fingerprint) or self._new_suspect(fingerprint, now)
        if fingerprint not in end.present:
            if end.is_death:
                suspect.deaths += 1
            else:
                suspect.doubts.add(launch)
        # Of several copies of one request at the same launch, whichever says most.
        end.present[fingerprint] = sent_as or end.present.get(fingerprint, "")
        suspect.pieces = max(suspect.pieces, pieces)
        if suspect.convicted_by is None:
            suspect.until = now + SUSPECT_S
        if end.is_death:
            self._judge(now)

    def died(self, launch: Launch, now: float) -> None:
        """It takes no connection any more, or is gone from the topology."""
        end = self._ends.get(launch)
        if end is None or end.is_death:
            return
        end.is_death = True
        for fingerprint in end.present:
            suspect = self._known[fingerprint]
            suspect.doubts.discard(launch)
            suspect.deaths += 1
        self._judge(now)

    def lived(self, launch: Launch, since: float) -> None:
        """It was seen to live `since` then: whoever was lost there before was lost by something else."""
        end = self._ends.get(launch)
        if end is None or end.is_death or since < end.last:
            return
        del self._ends[launch]
        for fingerprint in end.present:
            suspect = self._known[fingerprint]
            suspect.doubts.discard(launch)
            if not suspect.doubts and not suspect.deaths:
                self._forget(fingerprint)

    def answered(self, fingerprint: bytes) -> None:
        """An engine has answered it, and lives."""
        if fingerprint in self._known:
            self._forget(fingerprint)

    def tidy(self, now: float) -> None:
        """Forget what is old."""
        for launch, end in list(self._ends.items()):
            if now - end.since > DOUBT_S:
                if end.is_death:
                    del self._ends[launch]
                else:
                    self.lived(launch, now)
        for fingerprint in [one for one, suspect in self._known.items() if suspect.until <= now]:
            self._forget(fingerprint)

    # Judging.

    def _judge(self, now: float) -> None:
        """Once more at every death, and whenever somebody is heard to have been there too: that two launches died may
        become known in another order than that in which they did."""
        for launch, end in self._ends.items():
            sole = end.sole() if end.is_death else None
            for fingerprint in end.present:
                suspect = self._known[fingerprint]
                if fingerprint == sole and suspect.deaths >= self.limit and suspect.convicted_by is None:
                    suspect.convicted_by, suspect.until = launch, now + CONVICT_S
                elif fingerprint != sole and suspect.convicted_by == launch:
                    suspect.convicted_by, suspect.until = None, now + SUSPECT_S

    # Bounds.

    def _new_suspect(self, fingerprint: bytes, now: float) -> _Suspect:
        if len(self._known) >= MOST_SUSPECTS:
            suspects = (one for one, suspect in self._known.items() if suspect.convicted_by is None)
            self._forget(next(suspects, None) or next(iter(self._known)))
        suspect = self._known[fingerprint] = _Suspect(now + SUSPECT_S)
        return suspect

    def _new_end(self, launch: Launch, now: float) -> _End:
        if len(self._ends) >= MOST_ENDS:
            oldest = next(iter(self._ends))
            self.lived(oldest, now)
            self._ends.pop(oldest, None)
        end = self._ends[launch] = _End(now, now)
        return end

    def _forget(self, fingerprint: bytes) -> None:
        del self._known[fingerprint]
        for end in self._ends.values():
            end.present.pop(fingerprint, None)

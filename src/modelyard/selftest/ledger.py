"""What clients were told, held against what stands in the journal."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from modelyard.records.journal import RequestRecord
from modelyard.selftest.outcome import Tally


@dataclass(frozen=True, slots=True)
class Told:
    """What a client had to the last byte of an answer. `is_cut` where it left before: then only that its record exists
    is known."""

    key_id: str
    status: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_pico: int = 0
    is_cut: bool = False


class _Seen:
    """Which request ids have been recorded, a byte for each: workers number their requests from the first one on."""

    def __init__(self) -> None:
        self._numbers: dict[str, bytearray] = {}

    def add(self, request_id: str) -> bool:
        """Whether it is new. Ids are `req_`, eight characters of the worker, and the number in hexadecimal."""
        number = int(request_id[12:], 16)
        seen = self._numbers.setdefault(request_id[4:12], bytearray())
        if number >= len(seen):
            seen.extend(bytes(number + 1 - len(seen)))
        is_new, seen[number] = not seen[number], 1
        return is_new


class Ledger:
    """Each side as it comes, in any order; what has met is forgotten, so that a million of them fit into memory."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._told: dict[str, Told] = {}
        self._recorded: dict[str, RequestRecord] = {}
        self._seen = _Seen()

    def told(self, request_id: str, told: Told) -> None:
        if request_id in self._told:
            self._tally.wrong(f"two answers bear the id {request_id}")
        self._told[request_id] = told
        self._meet(request_id)

    def recorded(self, record: RequestRecord) -> None:
        if not self._seen.add(record.request_id):
            self._tally.wrong(f"{record.request_id} stands in the journal twice")
            return
        self._recorded[record.request_id] = record
        self._meet(record.request_id)

    def _meet(self, request_id: str) -> None:
        if request_id not in self._told or request_id not in self._recorded:
            return
        told, record = self._told.pop(request_id), self._recorded.pop(request_id)
        self._tally.saw("acknowledged and recorded" if not told.is_cut else "left by its client and recorded")
        found = Told(
            record.key_id, record.status, record.prompt_tokens, record.completion_tokens, record.cost_pico, told.is_cut
        )
        if not told.is_cut and found != told:
            self._tally.wrong(f"{request_id}: the client was told {told}, the journal says {found}")

    def close(self, in_flight: int, marked: Collection[str]) -> None:
        """At the end. `in_flight` were at the kills; `marked` are request ids whose end may not have come."""
        for request_id, told in self._told.items():
            self._tally.wrong(f"{request_id} was acknowledged ({told}) and stands nowhere in the journal")
        surplus = self._recorded.keys()
        self._tally.figure("surplus records", len(surplus), at_most=in_flight)
        for request_id in surplus:
            self._tally.saw("recorded, its end not received")
            self._tally.expect(request_id in marked, f"{request_id} was not acknowledged, and its record is not marked")

"""What one other worker holds, as the owner knows it: seats at launches, and reservations at accounts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple

from modelyard.gateway.accounts import Reservation
from modelyard.gateway.admission import WITHDRAWN, Admission, Asking
from modelyard.gateway.asking import Wanted
from modelyard.gateway.seats import Seats
from modelyard.gateway.shared_accounts import SharedAccounts


class Launch(NamedTuple):
    """One launch of one replica of one deployment, by their names."""

    deployment: str
    replica: str
    launch: str


@dataclass(slots=True)
class AtLaunch:
    """Seats at one launch, counted by key. `suspects` of them are held by isolated ones."""

    door: Admission
    seats: Seats
    keys: Counter[str] = field(default_factory=Counter[str])
    suspects: int = 0

    def let_suspects_go(self) -> None:
        self.seats.suspects = max(0, self.seats.suspects - self.suspects)


@dataclass(slots=True)
class HeldSeats:
    """Those of one worker."""

    _held: dict[Launch, AtLaunch] = field(default_factory=dict[Launch, AtLaunch])

    def count(self, door: Admission, seats: Seats, key_id: str, count: int, *, suspects: int = 0) -> None:
        launch = Launch(door.deployment.name, seats.replica.name, seats.replica.launch)
        held = self._held.get(launch)
        if held is None or held.seats is not seats:
            held = self._held[launch] = AtLaunch(door, seats)
        held.keys[key_id] += count
        held.suspects += suspects

    def take(self, launch: Launch, key_id: str, *, suspects: int = 0) -> AtLaunch | None:
        """One fewer is held there for the key; None where none was."""
        held = self._held.get(launch)
        if held is None or held.keys[key_id] <= 0:
            return None
        held.keys[key_id] -= 1
        held.suspects -= suspects
        return held

    def free(self) -> None:
        """The worker is gone: whoever waits has its seats."""
        held, self._held = self._held, {}
        for one in held.values():
            one.let_suspects_go()
            for key_id in one.keys.elements():
                Admission.leave(one.door, one.seats, WITHDRAWN, Asking(key_id=key_id))

    def forget(self) -> None:
        """Another owner counts them now."""
        for held in self._held.values():
            held.let_suspects_go()
            held.seats.in_flight -= held.keys.total()
        self._held.clear()


@dataclass(slots=True)
class HeldReservations:
    """Those of one worker, by the ids of its requests. `journal` is its file's name, empty until it has told."""

    accounts: SharedAccounts
    journal: str = ""
    _held: dict[str, Reservation] = field(default_factory=dict[str, Reservation])

    def reserve(self, wanted: Wanted) -> None:
        """Raises Refusal. A request that is sent once more has its reservation already."""
        if wanted.request_id not in self._held:
            self._keep(wanted, self.accounts.reserve_for(wanted, monotonic()))

    def hold(self, wanted: Wanted) -> None:
        """A former owner has said yes."""
        self._keep(wanted, self.accounts.hold(wanted, monotonic()))

    def _keep(self, wanted: Wanted, reservation: Reservation | None) -> None:
        if reservation is not None:
            self._held[wanted.request_id] = reservation

    def lines(self, wanted: Wanted | None) -> bytes:
        """Header lines about what was left."""
        reservation = self._held.get(wanted.request_id) if wanted is not None else None
        return reservation.lines if reservation is not None else b""

    def settle(self, request_id: str, tokens: int, cost_pico: int) -> None:
        reservation = self._held.pop(request_id, None)
        if reservation is not None:
            reservation.settle(tokens, cost_pico, monotonic())

    def free(self) -> None:
        """The worker is gone."""
        if self.journal:
            held, self._held = self._held, {}
            self.accounts.lost(held, self.journal, monotonic())

    def forget(self) -> None:
        """Another owner counts them now."""
        self._held.clear()
        self.journal = ""

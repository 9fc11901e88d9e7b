"""The accounts of keys where several workers share them: the owner keeps them, exactly; the others ask it.

What a request may use is asked for together with its seat, so that it costs no message of its own. What is open at the
owner is known by the link of the worker that asked: it is settled when that says so, or when that ends. The journal is
what a next owner begins with; beside it only what is open, and what has ended since it was read, has to be told."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Protocol

import msgspec

from modelyard.gateway.accounts import Account, Accounts, Asked, Reservation
from modelyard.gateway.asking import Wanted
from modelyard.gateway.journal import JournalWriter
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.seeding import Seeding
from modelyard.records.spending import Spent, period_of

# What ends in the one turn of the event loop in which the owner is gone and its link not closed yet: far fewer.
_REMEMBERED = 1024


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """What a request that was let in has used. Its record is in the first `position` bytes of its worker's journal."""

    wanted: Wanted
    tokens: int
    cost_pico: int
    position: int


class Owner(Protocol):
    """`is_here`: this worker keeps the accounts of all, and knows what the others hold."""

    is_here: bool

    def settled(self, ended: Ended) -> None: ...


class SharedReservation(Reservation):
    """A reservation of this worker's own. `inner` where this worker keeps the accounts; `is_held` once another one has
    said yes."""

    __slots__ = ("_accounts", "_wanted", "inner", "is_held")

    def __init__(self, accounts: SharedAccounts, wanted: Wanted, inner: Reservation | None) -> None:
        self._accounts, self._wanted, self.inner = accounts, wanted, inner
        self.is_held = False
        self.lines = inner.lines if inner is not None else b""

    @property
    def wanted(self) -> Wanted:
        return self._wanted

    def settle(self, tokens: int, cost_pico: int, now: float) -> None:
        self._accounts.settle(self, tokens, cost_pico, now)


class SharedAccounts(Accounts):
    """`open` are this worker's own reservations, by the ids of their requests. `journal` is its own file."""

    def __init__(self, keyring: Keyring, seeding: Seeding, journal: JournalWriter, owner: Owner) -> None:
        super().__init__(keyring)
        self.are_kept = False
        self._seeding, self._journal, self._owner = seeding, journal, owner
        # How far each file of the journal is in the accounts.
        self._counted: dict[str, int] = {}
        self.open: dict[str, SharedReservation] = {}
        self._ended: deque[Ended] = deque(maxlen=_REMEMBERED)

    # This worker's own requests.

    def reserve(self, line: tuple[Account, ...], asked: Asked, now: float, request_id: str) -> Reservation:
        """As with one worker where the accounts are kept here; elsewhere the answer comes with the seat."""
        inner = super().reserve(line, asked, now, request_id) if self._owner.is_here else None
        wanted = Wanted(request_id, line[0].node.id, asked.tokens, asked.cost_pico, asked.at, now)
        reservation = self.open[request_id] = SharedReservation(self, wanted, inner)
        return reservation

    def granted(self, wanted: Wanted, lines: bytes) -> None:
        """The owner has let the request in."""
        reservation = self.open.get(wanted.request_id)
        if reservation is not None:
            reservation.is_held = True
            reservation.lines = lines or reservation.lines

    def let_in(self, wanted: Wanted, now: float) -> None:
        """The accounts have come to be kept here while the request waited. Raises Refusal."""
        reservation = self.open[wanted.request_id]
        if reservation.inner is None:
            reservation.inner = self.reserve_for(wanted, now)
            reservation.lines = reservation.inner.lines if reservation.inner is not None else b""

    def settle(self, reservation: SharedReservation, tokens: int, cost_pico: int, now: float) -> None:
        wanted = reservation.wanted
        assert self.open.pop(wanted.request_id, None) is reservation, "a reservation settles once"
        if reservation.inner is not None:
            reservation.inner.settle(tokens, cost_pico, now)
            return
        ended = Ended(wanted, tokens, cost_pico, self._journal.size_bytes())
        if reservation.is_held:
            self._ended.append(ended)
        self._owner.settled(ended)

    # What a next owner is told.

    def held(self) -> list[Wanted]:
        return [one.wanted for one in self.open.values() if one.is_held]

    def ended(self) -> list[Ended]:
        """The last ones: told to every owner, who passes over those that it has read in the journal."""
        return list(self._ended)

    # Keeping the accounts of all.

    def knows(self, node: str) -> bool:
        """Whether the key or team is known here yet: another worker may have read of it first."""
        return node in self._keyring.keys

    def begin_to_own(self, now: float) -> None:
        self.clear()
        self._counted = self._seeding.begin(self)
        self.are_kept = True
        for reservation in self.open.values():
            if reservation.is_held:
                reservation.inner = self.hold(reservation.wanted, now)

    def give_up(self) -> None:
        """Another worker keeps the accounts: what is open here is told to it."""
        for reservation in self.open.values():
            if reservation.inner is not None:
                reservation.inner, reservation.is_held = None, True
        self.are_kept = False
        self.clear()

    def reserve_for(self, wanted: Wanted, now: float) -> Reservation | None:
        """For a request of another worker. Raises Refusal. None where nothing bounds it."""
        line = self._line_of(wanted)
        return super().reserve(line, _asked(wanted), now, wanted.request_id) if line else None

    def hold(self, wanted: Wanted, now: float) -> Reservation | None:
        """A former owner has let it in."""
        line, asked, period = self._line_of(wanted), _asked(wanted), period_of(wanted.at)
        for account in line:
            account.retake(asked, wanted.began, now, period)
        return Reservation(line, asked, wanted.began, period) if line else None

    def has_ended(self, ended: Ended, journal: str, now: float) -> None:
        """A former owner had let it in, and may not have heard of its end."""
        if ended.position <= self._counted.get(journal, 0):
            return
        wanted, period = ended.wanted, period_of(ended.wanted.at)
        spent = Spent().plus(ended.tokens, ended.cost_pico, today=True)
        for account in self._line_of(wanted):
            account.used(1, ended.tokens, wanted.began, now)
            account.spent(spent, period)

    def lost(self, open_: Mapping[str, Reservation], journal: str, now: float) -> None:
        """The worker that held these is gone. What it answered to the end stands in its journal; the rest used nothing
        that anybody will be billed for."""
        found, self._counted[journal] = self._seeding.ended(journal, open_)
        for request_id, reservation in open_.items():
            used = found.get(request_id)
            reservation.settle(used.tokens if used else 0, used.cost_pico if used else 0, now)

    def _line_of(self, wanted: Wanted) -> tuple[Account, ...]:
        node = self._keyring.keys.get(wanted.node)
        return self.line(node) if node is not None else ()


def _asked(wanted: Wanted) -> Asked:
    return Asked(wanted.tokens, wanted.cost_pico, wanted.at)

"""This worker's requests that wait for the owner's word, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from modelyard.gateway.admission import WITHDRAWN, Admission, Asking, Queued, Waiter
from modelyard.gateway.group_wire import Ask, Forget, Granted, Leave, NotSeated, ToOwner
from modelyard.gateway.refusals import Refusal, unavailable
from modelyard.gateway.seats import Seats
from modelyard.gateway.shared_accounts import SharedAccounts
from modelyard.gateway.shared_door import Place, SharedDoor

RETRY_EVERY_S = 0.01


class Places:
    """`send` tells the owner, where there is one: who takes its place is asked by `ask_all`. `look` reads the topology
    anew."""

    def __init__(self, accounts: SharedAccounts, send: Callable[[ToOwner], None], look: Callable[[], None]) -> None:
        self._accounts, self._send, self._look = accounts, send, look
        self._waiting: dict[int, Place] = {}
        # Tickets of an admission that was ours, and the places that took their place.
        self._moved: dict[Queued, Place] = {}
        self._entered: dict[Queued, Place] = {}
        self._asked = 0

    def ask(self, door: SharedDoor, waiter: Waiter, asking: Asking, now: float) -> Place:
        place = self._add(door, waiter, asking, now)
        self._send(_ask(place))
        return place

    def _add(self, door: SharedDoor, waiter: Waiter, asking: Asking, at: float) -> Place:
        self._asked += 1
        deadline = at + door.deployment.policy.queue_timeout_s
        place = self._waiting[self._asked] = Place(waiter, asking, deadline, id=self._asked, door=door, at=at)
        return place

    def ask_all(self) -> None:
        """Of an owner that has heard of none of them."""
        for place in self._waiting.values():
            self._send(_ask(place))

    def forget(self, door: SharedDoor, ticket: Queued) -> None:
        place = ticket if isinstance(ticket, Place) else self._moved.pop(ticket, None)
        if place is None:
            Admission.forget(door, ticket)
        elif place.inner is not None:
            Admission.forget(door, place.inner)
        elif self._waiting.pop(place.id, None) is not None:
            self._send(Forget(place.id))

    def expire(self, door: SharedDoor, deadline: float) -> None:
        """Turn away those at this door whose deadline has passed by then."""
        for place in [one for one in self._waiting.values() if one.door is door and one.deadline <= deadline]:
            text = f"{door.deployment.name!r}: waited {door.deployment.policy.queue_timeout_s:g} s for a free replica"
            self._give_up(place, unavailable(text, retry_after_s=door.retry_after_s()))

    def refuse_all(self, refusal: Callable[[], Refusal]) -> None:
        for place in list(self._waiting.values()):
            self._give_up(place, refusal())

    def _give_up(self, place: Place, refusal: Refusal) -> None:
        self.forget(place.door, place)
        place.waiter.not_seated(refusal)

    # The owner's word.

    def granted(self, word: Granted) -> None:
        place = self._waiting.pop(word.id, None)
        if place is None:
            # Its client has left meanwhile.
            self._give_back(word)
            return
        if place.asking.wanted is not None:
            self._accounts.granted(place.asking.wanted, word.lines)
        door = place.door
        seats = _seats(door, word)
        if seats is None:
            self._look()
            seats = _seats(door, word)
        if seats is None:
            # The owner knows a launch that we do not: asked again, at the back of the queue but with its old deadline.
            self._give_back(word)
            self._waiting[place.id] = place
            asyncio.get_running_loop().call_later(RETRY_EVERY_S, self._ask_again, place)
            return
        door.granted(place.waiter, place.asking, seats, word.decision)

    def _give_back(self, word: Granted) -> None:
        self._send(Leave(word.deployment, word.replica, word.launch, WITHDRAWN, Asking(key_id=word.key_id)))

    def _ask_again(self, place: Place) -> None:
        if self._waiting.get(place.id) is place:
            self._send(_ask(place))

    def turned_away(self, word: NotSeated) -> None:
        place = self._waiting.pop(word.id, None)
        if place is not None:
            place.waiter.not_seated(word.refusal())

    # This worker owns, or owns no longer.

    def enter_here(self, now: float) -> None:
        """They wait at our own doors from now on."""
        waiting, self._waiting = self._waiting, {}
        for place in waiting.values():
            try:
                if place.asking.wanted is not None:
                    self._accounts.let_in(place.asking.wanted, now)
                place.inner = Admission.enter(place.door, place.waiter, place.asking, place.at)
            except Refusal as refusal:
                place.waiter.not_seated(refusal)
                continue
            if place.inner is not None:
                self._entered[place.inner] = place

    def move(self, door: SharedDoor, ticket: Queued) -> None:
        """Who has waited at our own door waits for another owner's word."""
        place = self._entered.pop(ticket, None)
        if place is None:
            at = ticket.deadline - door.deployment.policy.queue_timeout_s
            place = self._moved[ticket] = self._add(door, ticket.waiter, ticket.asking, at)
        place.inner = None
        self._waiting[place.id] = place


def _ask(place: Place) -> Ask:
    return Ask(place.id, place.door.deployment.name, place.asking, place.at)


def _seats(door: Admission, word: Granted) -> Seats | None:
    seats = door.seats.get(word.replica)
    return seats if seats is not None and seats.replica.launch == word.launch else None

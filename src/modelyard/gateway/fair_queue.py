"""Who of those that wait goes next: strict priorities that starve nobody, and fairness between keys within each.

Fairness is that of virtual tokens (Sheng et al. 2024, "Fairness in Serving Large Language Models"): each key has a
counter of the tokens that it was given, divided by its weight, and the key with the least goes next. A key that comes
back is lifted to where the lane stands, so that nobody saves up for a burst (the start tags of start-time fair
queueing, Goyal, Vin and Cheng 1996). For two keys that both wait all the time, the tokens given per weight differ by at
most one request of each. Within a key: first come, first served, and before them all those that had a seat already and
lost it to a failure.

A request that may not go to every replica, or not now, waits in a line beside its key's others, so as not to hold them
up; what either line is given counts for both.

State without time or I/O; every operation takes O(log n)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from modelyard.gateway.asking import Asking
from modelyard.gateway.limits import DOOR
from modelyard.gateway.ranking import Ranking


class Waiting(Protocol):
    """A ticket. `waiting` is the queue's: true from when it is put in until it is taken, dropped or pushed out."""

    asking: Asking
    waiting: bool


T = TypeVar("T", bound=Waiting)


@dataclass(slots=True, eq=False)
class _Line(Generic[T]):
    """Those of one key that may go to the same replicas, in order: first the ones that had a seat before."""

    name: str
    flow: _Flow[T]
    waiting: int = 0
    again: deque[T] = field(default_factory=deque[T])
    tickets: deque[T] = field(default_factory=deque[T])

    def put(self, ticket: T) -> None:
        (self.again if ticket.asking.again else self.tickets).append(ticket)

    def head(self) -> T:
        tickets = self.again or self.tickets
        while not tickets[0].waiting:
            tickets.popleft()
            tickets = self.again or self.tickets
        return tickets[0]

    def newest(self) -> T:
        tickets = self.tickets or self.again
        while not tickets[-1].waiting:
            tickets.pop()
            tickets = self.tickets or self.again
        return tickets[-1]

    def tidy(self) -> None:
        """Forget those that have left, before they outnumber those that wait."""
        if not self.waiting:
            self.again.clear()
            self.tickets.clear()
        elif len(self.again) + len(self.tickets) > 2 * self.waiting + 8:
            self.again = deque(one for one in self.again if one.waiting)
            self.tickets = deque(one for one in self.tickets if one.waiting)


@dataclass(slots=True, eq=False)
class _Flow(Generic[T]):
    """What one key has waiting in one lane. `given` are its virtual tokens."""

    weight: float = 1.0
    given: float = 0.0
    waiting: int = 0
    size_bytes: int = 0
    lines: list[_Line[T]] = field(default_factory=list[_Line[T]])

    def newest(self) -> T:
        return next(line for line in self.lines if line.waiting).newest()


@dataclass(slots=True, eq=False)
class _Lane(Generic[T]):
    """One priority. `clock` is its virtual time; `passed` counts seats given above it while somebody waited here."""

    flows: dict[str, _Flow[T]] = field(default_factory=dict[str, _Flow[T]])
    lines: dict[str, _Line[T]] = field(default_factory=dict[str, _Line[T]])
    by_turn: Ranking = field(default_factory=Ranking)
    by_share: Ranking = field(default_factory=Ranking)
    clock: float = 0.0
    waiting: int = 0
    passed: int = 0

    def flow(self, key_id: str) -> _Flow[T]:
        flow = self.flows.get(key_id)
        if flow is None:
            flow = self.flows[key_id] = _Flow()
        return flow

    def line(self, asking: Asking) -> _Line[T]:
        name = _line_name(asking)
        line = self.lines.get(name)
        if line is None:
            flow = self.flow(asking.key_id)
            line = self.lines[name] = _Line(name, flow)
            flow.lines.append(line)
        return line

    def lift(self, flow: _Flow[T]) -> None:
        if not flow.waiting:
            flow.given = max(flow.given, self.clock)

    def charge(self, flow: _Flow[T], asking: Asking) -> None:
        self.lift(flow)
        self.clock = max(self.clock, flow.given)
        flow.given += max(1, asking.tokens) / flow.weight

    def rank(self, flow: _Flow[T]) -> None:
        """What it was given has changed."""
        for line in flow.lines:
            if line.waiting:
                self.by_turn.set(line.name, flow.given)

    def forget(self, key_id: str) -> None:
        for line in self.flows.pop(key_id).lines:
            del self.lines[line.name]


class FairQueue(Generic[T]):
    """Tickets by priority and key. `most` and `most_bytes` bound it: whoever puts a ticket in looks first whether it
    `fits`, and if not, makes room."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.waiting = 0
        self.size_bytes = 0
        self._lanes: dict[int, _Lane[T]] = {}
        self._highest_first: list[int] = []

    def __len__(self) -> int:
        return self.waiting

    # In and out.

    def put(self, ticket: T) -> None:
        asking = ticket.asking
        lane = self._lane(asking.priority)
        line = lane.line(asking)
        line.flow.weight = asking.weight
        lane.lift(line.flow)
        line.put(ticket)
        ticket.waiting = True
        self._count(lane, line, asking, 1)
        if line.waiting == 1:
            lane.by_turn.set(line.name, line.flow.given)

    def next(self, may_go: Callable[[T], bool]) -> T | None:
        """The ticket whose turn it is among the first ones of each line that may go now; it stays in."""
        for priority in self._by_turn():
            lines = self._lanes[priority].lines
            name = self._lanes[priority].by_turn.least(lambda one, lines=lines: may_go(lines[one].head()))
            if name is not None:
                return lines[name].head()
        return None

    def take(self, ticket: T) -> None:
        """Out, because it gets a seat: its key is charged, the lanes below it have been passed once more."""
        asking = ticket.asking
        for priority, lane in self._lanes.items():
            if priority == asking.priority:
                lane.passed = 0
            elif priority < asking.priority and lane.waiting:
                lane.passed += 1
        lane = self._lanes[asking.priority]
        line = lane.line(asking)
        lane.charge(line.flow, asking)
        self._remove(ticket, lane, line)
        lane.rank(line.flow)

    def drop(self, ticket: T) -> None:
        """Out without a seat."""
        lane = self._lanes[ticket.asking.priority]
        self._remove(ticket, lane, lane.line(ticket.asking))

    # What was given.

    def charge(self, asking: Asking) -> None:
        """A seat was given without waiting."""
        lane = self._lanes.get(asking.priority) or self._lane(asking.priority)
        flow = lane.flow(asking.key_id)
        flow.weight = asking.weight
        lane.charge(flow, asking)

    def settle(self, asking: Asking, tokens: int) -> None:
        """A request that was charged has cost `tokens`."""
        lane = self._lanes.get(asking.priority)
        flow = lane.flows.get(asking.key_id) if lane is not None else None
        if lane is None or flow is None:
            return
        flow.given += (max(1, tokens) - max(1, asking.tokens)) / flow.weight
        if flow.waiting:
            lane.rank(flow)

    def keys_known(self) -> int:
        return sum(len(lane.flows) for lane in self._lanes.values())

    def tidy(self) -> None:
        """Forget keys that have nothing waiting and are owed nothing. Where nobody waits nothing is scarce, and what
        was given before is forgotten too."""
        for lane in self._lanes.values():
            if not lane.waiting:
                lane.clock = max((flow.given for flow in lane.flows.values()), default=lane.clock)
            idle = [key_id for key_id, flow in lane.flows.items() if not flow.waiting and flow.given <= lane.clock]
            for key_id in idle:
                lane.forget(key_id)

    # Room.

    def fits(self, asking: Asking) -> bool:
        return self.waiting < self.most and self.size_bytes + asking.size_bytes <= self.most_bytes

    def heaviest_against(self, asking: Asking) -> T | None:
        """Who has to go so that the newcomer `asking` may wait: the newest ticket of the key with the largest share, of
        the lowest lane that has more than it is guaranteed. None where that is the newcomer's own key, or nobody."""
        own = self._lanes.get(asking.priority)
        guaranteed = max(1, int(self.most * DOOR.guaranteed_part))
        is_owed = (own.waiting if own is not None else 0) < guaranteed
        for priority in reversed(self._highest_first):
            if priority > asking.priority and not is_owed:
                return None
            lane = self._lanes[priority]
            if lane is not own and lane.waiting <= guaranteed:
                continue
            key_id = lane.by_share.least()
            if key_id is None or (lane is own and not self._outweighs(lane, key_id, asking)):
                if is_owed and lane is own:
                    continue
                return None
            return lane.flows[key_id].newest()
        return None

    def make_room(self, asking: Asking) -> list[T] | None:
        """Push out those that `heaviest_against` names until the newcomer fits; None, with all as it was, where that
        does not come to it."""
        pushed_out: list[T] = []
        while not self.fits(asking):
            victim = self.heaviest_against(asking)
            if victim is None:
                for ticket in reversed(pushed_out):
                    self.put(ticket)
                return None
            self.drop(victim)
            pushed_out.append(victim)
        return pushed_out

    def held(self, asking: Asking) -> int:
        """How many tickets of the same key and priority wait."""
        lane = self._lanes.get(asking.priority)
        flow = lane.flows.get(asking.key_id) if lane is not None else None
        return flow.waiting if flow is not None else 0

    def keys_waiting(self, priority: int) -> int:
        lane = self._lanes.get(priority)
        return len(lane.by_share) if lane is not None else 0

    def ahead(self, asking: Asking) -> int:
        """How many tickets a newcomer has before it, about: of each other key of its own lane as many as of its own
        key, which is what fairness comes to where requests cost alike; of higher lanes all, or as many as may pass. One
        that had a seat before has none of its own key."""
        above = sum(lane.waiting for priority, lane in self._lanes.items() if priority > asking.priority)
        lane = self._lanes.get(asking.priority)
        within = 0
        if lane is not None:
            held = self.held(asking)
            own, others = 0 if asking.again else held, len(lane.by_share) - (1 if held else 0)
            within = own + min(lane.waiting - held, (own + 1) * others)
        return within + min(above, (within + 1) * DOOR.passes)

    def _outweighs(self, lane: _Lane[T], key_id: str, asking: Asking) -> bool:
        """Whether the share of `key_id` is larger than the newcomer's would be."""
        if key_id == asking.key_id:
            return False
        flow = lane.flows.get(asking.key_id)
        waiting, size_bytes = (flow.waiting, flow.size_bytes) if flow is not None else (0, 0)
        other = lane.flows[key_id]
        mine = self._share(waiting + 1, size_bytes + asking.size_bytes, asking.weight)
        return self._share(other.waiting, other.size_bytes, other.weight) > mine

    def _share(self, waiting: int, size_bytes: int, weight: float) -> float:
        """The larger of its parts of the places and of the bytes (dominant share, Ghodsi et al. 2011)."""
        return max(waiting / max(1, self.most), size_bytes / max(1, self.most_bytes)) / weight

    # Lanes.

    def _lane(self, priority: int) -> _Lane[T]:
        lane = self._lanes.get(priority)
        if lane is None:
            lane = self._lanes[priority] = _Lane()
            self._highest_first = sorted(self._lanes, reverse=True)
        return lane

    def _by_turn(self) -> list[int]:
        """The priorities with somebody waiting, in the order in which they are asked: first those that were passed too
        often, the most often passed before the others."""
        waiting = [priority for priority in self._highest_first if self._lanes[priority].waiting]
        if len(waiting) < 2:
            return waiting
        return sorted(waiting, key=lambda priority: -self._overdue(priority))

    def _overdue(self, priority: int) -> int:
        passed = self._lanes[priority].passed
        return passed if passed >= DOOR.passes else 0

    def _count(self, lane: _Lane[T], line: _Line[T], asking: Asking, sign: int) -> None:
        flow, size_bytes = line.flow, sign * asking.size_bytes
        self.waiting += sign
        self.size_bytes += size_bytes
        lane.waiting += sign
        line.waiting += sign
        flow.waiting += sign
        flow.size_bytes += size_bytes
        if flow.waiting:
            lane.by_share.set(asking.key_id, -self._share(flow.waiting, flow.size_bytes, flow.weight))
        else:
            lane.by_share.remove(asking.key_id)
        if not line.waiting:
            lane.by_turn.remove(line.name)

    def _remove(self, ticket: T, lane: _Lane[T], line: _Line[T]) -> None:
        ticket.waiting = False
        self._count(lane, line, ticket.asking, -1)
        line.tidy()
        if not lane.waiting:
            lane.passed = 0


def _line_name(asking: Asking) -> str:
    if asking.suspect:
        return f"{asking.key_id} isolated {asking.suspect.hex()}"
    return f"{asking.key_id} elsewhere" if asking.excluded else asking.key_id

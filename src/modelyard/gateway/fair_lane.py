"""What waits in one priority of a queue: by key a flow with what it was given, in it a line for each set of replicas
that its requests may go to."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from modelyard.gateway.asking import Asking
from modelyard.gateway.ranking import Ranking


class Waiting(Protocol):
    """A ticket. `waiting` is the queue's: true from when it is put in until it is taken, dropped or pushed out."""

    asking: Asking
    waiting: bool


T = TypeVar("T", bound=Waiting)


@dataclass(slots=True, eq=False)
class Line(Generic[T]):
    """Those of one key that may go to the same replicas, in order: first the ones that had a seat before. There is one
    only while somebody waits in it."""

    name: str
    flow: Flow[T]
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
        if len(self.again) + len(self.tickets) > 2 * self.waiting + 8:
            self.again = deque(one for one in self.again if one.waiting)
            self.tickets = deque(one for one in self.tickets if one.waiting)


@dataclass(slots=True, eq=False)
class Flow(Generic[T]):
    """What one key has in one lane. `given` are its virtual tokens."""

    weight: float = 1.0
    given: float = 0.0
    waiting: int = 0
    size_bytes: int = 0
    lines: list[Line[T]] = field(default_factory=list[Line[T]])

    def newest(self) -> T:
        """Of one of its lines; one that had a seat before only where all had."""
        return min((line.newest() for line in self.lines), key=lambda ticket: ticket.asking.again)


@dataclass(slots=True, eq=False)
class Lane(Generic[T]):
    """One priority. `clock` is its virtual time; `passed` counts seats given above it while somebody waited here."""

    flows: dict[str, Flow[T]] = field(default_factory=dict[str, Flow[T]])
    lines: dict[str, Line[T]] = field(default_factory=dict[str, Line[T]])
    by_turn: Ranking = field(default_factory=Ranking)
    by_share: Ranking = field(default_factory=Ranking)
    clock: float = 0.0
    waiting: int = 0
    passed: int = 0

    def flow(self, key_id: str) -> Flow[T]:
        flow = self.flows.get(key_id)
        if flow is None:
            flow = self.flows[key_id] = Flow()
        return flow

    def line(self, asking: Asking) -> Line[T]:
        name = _line_name(asking)
        line = self.lines.get(name)
        if line is None:
            flow = self.flow(asking.key_id)
            line = self.lines[name] = Line(name, flow)
            flow.lines.append(line)
        return line

    def lift(self, flow: Flow[T]) -> None:
        if not flow.waiting:
            flow.given = max(flow.given, self.clock)

    def charge(self, flow: Flow[T], asking: Asking) -> None:
        self.lift(flow)
        self.clock = max(self.clock, flow.given)
        flow.given += max(1, asking.tokens) / flow.weight

    def rank(self, flow: Flow[T]) -> None:
        """What it was given has changed."""
        for line in flow.lines:
            self.by_turn.set(line.name, flow.given)

    def close(self, line: Line[T]) -> None:
        """Nobody waits in it any more."""
        self.by_turn.remove(line.name)
        line.flow.lines.remove(line)
        del self.lines[line.name]


def _line_name(asking: Asking) -> str:
    """One that may not go to every replica, or not now, waits beside its key's others, so as not to hold them up."""
    if asking.suspect:
        return f"{asking.key_id} isolated {asking.suspect.hex()}"
    return f"{asking.key_id} elsewhere" if asking.excluded else asking.key_id

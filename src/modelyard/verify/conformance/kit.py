"""The order of the kit: a plan, one launch that is asked everything, the same again and killed, launches that fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from modelyard import __version__
from modelyard.clock import Clock
from modelyard.verify.conformance.asking import running
from modelyard.verify.conformance.processes import Process
from modelyard.verify.conformance.record import Conformance, Outcome
from modelyard.verify.conformance.row import Pace, Row, Trial, judge
from modelyard.verify.conformance.rows_cancel import CANCEL_ROWS
from modelyard.verify.conformance.rows_ending import ENDING_ROWS, NOTHING_LEFT_ROW, kill_row
from modelyard.verify.conformance.rows_metrics import METRIC_ROWS
from modelyard.verify.conformance.rows_plan import PLAN_ROWS
from modelyard.verify.conformance.rows_refused import REFUSED_ROWS
from modelyard.verify.conformance.rows_running import running_rows
from modelyard.verify.conformance.rows_start import RESTART_ROW, START_ROWS
from modelyard.verify.conformance.stand import Launched, open_stand
from modelyard.verify.conformance.start import watch_start
from modelyard.verify.conformance.subject import Subject

Part = Literal["plan", "first launch", "again", "refused"]
PARTS: tuple[Part, ...] = ("plan", "first launch", "again", "refused")
_TAIL_LINES = 30


async def run(
    subject: Subject,
    *,
    clock: Clock,
    on_row: Callable[[Row], None],
    on_outcome: Callable[[Outcome], None],
    pace: Pace | None = None,
    parts: Sequence[Part] = PARTS,
) -> Conformance:
    """Try every row of the kit on `subject`. `on_row` hears what is tried next, `on_outcome` each outcome.

    `again` needs `first launch`. When it returns or raises, nothing that it started is left."""
    began = clock.monotonic()
    async with open_stand(subject) as stand:
        kit = _Kit(Trial(subject, stand, pace or Pace()), on_row, on_outcome)
        if "plan" in parts:
            await kit.ask(PLAN_ROWS)
        if "first launch" in parts:
            await kit.first_launch()
        if "again" in parts:
            await kit.again()
        if "refused" in parts:
            await kit.ask(REFUSED_ROWS)
        await stand.end()
        await kit.ask((NOTHING_LEFT_ROW,))
        effective = stand.launches[0].spec.effective if stand.launches else {}
    return Conformance(
        engine=subject.engine.name,
        version=subject.install.version,
        lock_sha256=subject.install.lock_sha256,
        modelyard=__version__,
        model=subject.replica.artifact.name,
        artifact_sha256=subject.replica.artifact.sha256,
        machine=subject.machine,
        at=clock.wall(),
        duration_s=clock.monotonic() - began,
        rows=tuple(kit.outcomes),
        effective=effective,
        tail=kit.tail,
    )


class _Kit:
    def __init__(self, trial: Trial, on_row: Callable[[Row], None], on_outcome: Callable[[Outcome], None]) -> None:
        self.outcomes: list[Outcome] = []
        self.tail: tuple[str, ...] = ()
        self._trial, self._on_row, self._on_outcome = trial, on_row, on_outcome

    async def ask(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._on_row(row)
            outcome = await judge(row, self._trial)
            self.outcomes.append(outcome)
            self._on_outcome(outcome)
            if outcome.verdict == "red" and self._trial.stand.launches:
                launched = self._trial.stand.launches[-1]
                self.tail += (f"--- {row.name}, launch {launched.number} ---", *tuple(launched.lines)[-_TAIL_LINES:])

    async def first_launch(self) -> None:
        await self.ask(START_ROWS)
        trial = self._trial
        rows = (*running_rows(trial.subject), *METRIC_ROWS, *CANCEL_ROWS, *ENDING_ROWS)
        if trial.start is not None and trial.start.ready_s is not None:
            await self._ask_of(trial.stand.launches[-1], rows)
        else:
            await self.ask(rows)
            await trial.stand.end()

    async def again(self) -> None:
        """The same launch, and the end of each of its processes; a new launch wherever the last one did not live on."""
        await self.ask((RESTART_ROW,))
        trial = self._trial
        if trial.again is None or trial.again.ready_s is None:
            return
        launched = trial.stand.launches[-1]
        processes = await launched.processes()
        victims, count = processes, len(processes)
        for number in range(1, count + 1):
            if launched.has_ended:
                launched = trial.stand.launch()
                await watch_start(trial.subject, launched)
                victims = await launched.processes()
            if number <= len(victims):
                await self._ask_of(launched, (_killing(number, count, victims),))
        if not launched.has_ended:
            await launched.kill()

    async def _ask_of(self, launched: Launched, rows: Sequence[Row]) -> None:
        trial = self._trial
        async with running(trial.subject, launched) as trial.now:
            trial.broken = ""
            await self.ask(rows)
        trial.now = None
        if not launched.has_ended and trial.broken:
            await launched.kill()


def _killing(number: int, count: int, victims: Sequence[Process]) -> Row:
    return kill_row(number, count, victims[number - 1], is_leader=number == 1)

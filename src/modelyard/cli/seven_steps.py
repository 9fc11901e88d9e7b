"""The seven steps of a deployment's life as they pass: a line each with its time, a bar while something long runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from modelyard.records.base import Record

StepName = Literal["environment", "model", "framework", "configuration", "verification", "go-live", "operation"]
STEPS: tuple[StepName, ...] = (
    "environment",
    "model",
    "framework",
    "configuration",
    "verification",
    "go-live",
    "operation",
)
# Told to `advance`: what is happening, and which part of it is done (None where unknown).
Advance = Callable[[str, float | None], None]


class StepDone(Record, tag_field="event", tag="step", kw_only=True):
    """A line of `--json`."""

    deployment: str
    step: StepName
    result: str
    ok: bool
    seconds: float


@dataclass(slots=True)
class Current:
    """The step under way; set `result` before it ends."""

    advance: Advance
    result: str = ""
    ok: bool = True


@dataclass(slots=True)
class SevenSteps:
    """Prints for people, or one JSON object per line where `as_json`."""

    deployment: str
    console: Console
    as_json: bool
    done: list[StepDone] = field(default_factory=list[StepDone])

    @contextmanager
    def step(self, name: StepName) -> Generator[Current]:
        """The block is the step; a step that raises is shown as failed and the error goes on."""
        began = time.monotonic()
        try:
            with self._bar(name) as advance:
                current = Current(advance)
                yield current
        except BaseException as error:
            self._finish(name, _in_a_line(error), time.monotonic() - began, ok=False)
            raise
        self._finish(name, current.result, time.monotonic() - began, ok=current.ok)

    def note(self, text: str) -> None:
        """Something worth a line inside a step."""
        if not self.as_json:
            self.console.print(f"      {text}", style="dim", markup=False)

    def _finish(self, name: StepName, result: str, seconds: float, *, ok: bool) -> None:
        done = StepDone(deployment=self.deployment, step=name, result=result, ok=ok, seconds=round(seconds, 3))
        self.done.append(done)
        if self.as_json:
            print(msgspec.json.encode(done).decode(), flush=True)
            return
        mark = "[green]✓[/green]" if ok else "[red]✗[/red]"
        text = result.replace("[", r"\[")
        number = STEPS.index(name) + 1
        self.console.print(f"{mark} {number}/7 [bold]{name:<13}[/bold] {text}  [dim]{seconds:.1f} s[/dim]")

    def _bar(self, name: StepName) -> AbstractContextManager[Advance]:
        return self.bar(f"{STEPS.index(name) + 1}/7 {name:<13}")

    @contextmanager
    def bar(self, title: str) -> Generator[Advance]:
        """A bar while something long runs, where somebody looks; it is gone afterwards."""
        if self.as_json or not self.console.is_terminal or self.console.is_dumb_terminal:
            yield lambda text, fraction: None
            return
        columns = (
            SpinnerColumn(),
            TextColumn(title),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("", total=None)
            yield _advancing(progress, task)


def _in_a_line(error: BaseException) -> str:
    """The whole of it follows where the command ends."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return (str(error) or type(error).__name__).splitlines()[0]


def _advancing(progress: Progress, task: TaskID) -> Advance:
    def advance(text: str, fraction: float | None) -> None:
        # rich has no way back to an unknown total: a whole bar of no length stands for it.
        total = None if fraction is None else 1.0
        progress.update(task, description=text, total=total, completed=fraction or 0.0)

    return advance

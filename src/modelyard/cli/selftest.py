"""`modelyard selftest`: try what we promise, on this machine."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modelyard.cli.admin import state_directory
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json, print_table, say
from modelyard.errors import ModelyardError, UsageError

if TYPE_CHECKING:
    from modelyard.selftest.result import Result
    from modelyard.selftest.row import Row

_COLOURS = {"green": "green", "red": "red", "not run": "yellow"}
_MARKS = {"green": "✓", "red": "✗", "not run": "-"}
# Where nobody looks, progress is a line from time to time.
_PROGRESS_EVERY_S = 30.0


def selftest(
    rows: Annotated[str, typer.Option(help="4,22,33-35 or words; without it all, `none` for none.")] = "",
    short: Annotated[bool, typer.Option(help="Try each row a few times only, with generous times.")] = False,
    resume: Annotated[bool, typer.Option(help="Leave out rows that are green for the same source already.")] = False,
    seed: Annotated[int | None, typer.Option(help="Repeat the chance of a run.")] = None,
    write: Annotated[Path | None, typer.Option(help="Also write all results as a Markdown page.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Only say what rows there are.")] = False,
    json: Json = False,
) -> None:
    """Hold what we promise against real processes: killed, flooded, lied to.

    Everything runs in temporary folders on loopback; what is served meanwhile is not touched, but shares the machine.
    Results are kept in the state directory. Exit code 1 where a row is red."""
    from modelyard.selftest.document import document
    from modelyard.selftest.registry import ROWS, choose
    from modelyard.selftest.result import latest

    chosen = tuple(row for row in choose(rows) if row.short or not short)
    if show:
        return _list(chosen)
    if write is not None and not write.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {write.absolute().parent}", hint="name a file in a folder that exists")
    state = state_directory()
    dice = seed if seed is not None else random.SystemRandom().randrange(1_000_000)
    results = _try_all(chosen, dice, short=short, resume=resume, as_json=json)
    if write is not None:
        write.write_text(document(ROWS, lambda key: latest(state, key, short=False) or latest(state, key, short=True)))
        if not json:
            say(f"wrote {write}")
    if json:
        print_json(results)
    red = [result.row for result in results if result.verdict == "red"]
    if red:
        hint = f"modelyard selftest --rows {','.join(red)} --seed {dice} tries them again"
        raise ModelyardError(f"red: {', '.join(red)}", hint=hint)


def _try_all(rows: tuple[Row, ...], seed: int, *, short: bool, resume: bool, as_json: bool) -> list[Result]:
    from modelyard.selftest.result import latest, save
    from modelyard.selftest.running import run
    from modelyard.selftest.sources import source_sha256

    state = state_directory()
    results: list[Result] = []
    OUT.quiet = as_json
    with _Progress(OUT) as progress:
        for row in rows:
            kept = latest(state, row.key, short=short) if resume else None
            if kept is not None and kept.verdict == "green" and kept.source_sha256 == source_sha256(row):
                progress.kept(kept)
                results.append(kept)
                continue
            progress.begin(row, row.short if short else row.full)
            command = f"modelyard selftest --rows {row.key} --seed {seed}{' --short' if short else ''}"
            results.append(run(row, seed=seed, short=short, command=command, on_progress=progress.at))
            save(state, results[-1])
            progress.done(results[-1])
    OUT.quiet = False
    return results


def _list(rows: tuple[Row, ...]) -> None:
    table = Table("row", "what is done", "tried", "short", "takes about", "claim", box=None)
    for row in rows:
        tried, short = f"{row.full:,} {row.unit}", f"{row.short:,}" if row.short else "-"
        table.add_row(row.key, row.name, tried, short, _duration(row.takes_s), row.claim)
    print_table(table)
    say(f"{len(rows)} rows, about {_duration(sum(row.takes_s for row in rows))} in all on a quiet machine")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class _Progress:
    """Results as they come out; on a terminal the row that is tried stands below them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("") if console.is_terminal else None
        self._row, self._said_at = "", 0.0

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._status is not None:
            self._status.stop()

    def begin(self, row: Row, size: int) -> None:
        self._row, self._said_at = f"{row.key}: {row.name}, %d of {size} {row.unit}", time.monotonic()
        self.at(0)

    def at(self, done: int) -> None:
        if self._status is not None:
            self._status.update(escape(self._row % done))
        elif time.monotonic() - self._said_at > _PROGRESS_EVERY_S:
            self._said_at = time.monotonic()
            self._console.print(f"  {escape(self._row % done)}")

    def kept(self, result: Result) -> None:
        from modelyard.selftest.document import day

        self._console.print(f"[dim]✓ {escape(result.row)} {escape(result.name)}: green on {day(result)}[/dim]")

    def done(self, result: Result) -> None:
        from modelyard.selftest.document import in_words

        colour, seconds = _COLOURS[result.verdict], f"[dim]{result.duration_s:.1f} s[/dim]"
        head = f"[{colour}]{_MARKS[result.verdict]}[/] [bold]{escape(result.row)}[/bold] {escape(result.name)}"
        self._console.print(f"{head}: {result.outcome.tried} {result.unit}  {seconds}")
        if told := in_words(result):
            self._console.print(f"    {escape(told)}")
        for text in result.outcome.failed[:5]:
            self._console.print(f"    [red]{escape(text)}[/red]")
        if result.outcome.failures > 5:
            self._console.print(f"    [red]{result.outcome.failures} failures in all[/red]")

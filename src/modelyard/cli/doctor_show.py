"""How `doctor` looks in a terminal, and plain when it is piped."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape

from modelyard.cli.doctor_engines import EngineView
from modelyard.cli.output import as_called
from modelyard.hardware.accelerator import Accelerator
from modelyard.hardware.details import Details
from modelyard.hardware.machine import Machine
from modelyard.hardware.rates import Rates, Spread
from modelyard.records.finding import Finding
from modelyard.spec.sizes import show as size

_MARKS = {"error": "[red]✗[/red]", "warning": "[yellow]![/yellow]", "note": "[dim]·[/dim]"}
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def show(
    machine: Machine,
    details: Details,
    rates: Rates | None,
    engines: Iterable[EngineView],
    findings: tuple[Finding, ...],
    out: Console,
) -> None:
    _section(out, "machine", _machine_rows(machine, details))
    _section(out, "accelerators", [_accelerator_row(one) for one in machine.accelerators] or [("none", "")])
    if rates is not None:
        _section(out, f"measured {_ago(time.time() - rates.at)} ago, {rates.threads} threads", _rate_rows(rates))
    _engines(out, engines)
    _findings(out, findings)


def _section(out: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Lines of their own, not a table: they are never folded, so that a pipe gets each fact whole."""
    known = list(rows)
    width = max(len(label) for label, _ in known)
    out.print(f"[bold]{title}[/bold]")
    for label, text in known:
        out.print(f"  {escape(label):<{width}}  {escape(text)}".rstrip())
    out.print()


def _machine_rows(machine: Machine, details: Details) -> list[tuple[str, str]]:
    quota = "" if details.quota_cores is None else f" · a quota of {details.quota_cores:g}"
    counts = ((details.physical_cores, "physical core"), (details.sockets, "socket"), (details.numa_nodes, "NUMA node"))
    layout = "".join(f" · {count} {what}{'s' if count > 1 else ''}" for count, what in counts if count)
    disk = details.disk
    kind = ", ".join(filter(None, (disk.file_system, disk.kind)))
    cache = f" · {size(details.last_level_cache_bytes)} of last cache" if details.last_level_cache_bytes else ""
    rows = [
        ("processor", f"{machine.cpu_model} ({machine.arch}){cache}"),
        ("kernels by", ", ".join(machine.isa) or "nothing that we know of"),
        ("cores", f"{machine.cores} of {details.online} threads{quota}{layout}"),
        ("memory", f"{size(machine.memory_bytes)}, {size(machine.available_bytes)} free"),
        ("state", f"{disk.folder}: {size(disk.free_bytes)} free" + (f" ({kind})" if kind else "")),
        ("runs in", ", ".join(details.inside) or "nothing that shows itself"),
        ("limits by", f"control groups {details.cgroups}" if details.cgroups != "none" else "no control groups"),
    ]
    if details.transparent_huge_pages:
        rows.append(("huge pages", details.transparent_huge_pages))
    return rows


def _accelerator_row(one: Accelerator) -> tuple[str, str]:
    if one.unified:
        memory = "in the machine's own memory"
    elif one.memory_bytes is None:
        memory = "memory unknown"
    else:
        free = "" if one.free_bytes is None else f", {size(one.free_bytes)} free"
        memory = f"{size(one.memory_bytes)}{free}"
    said = (
        one.partition,
        memory,
        one.architecture,
        f"driver {one.driver}" if one.driver else "",
        f"runtime {one.runtime}" if one.runtime else "",
        one.links,
        f"{one.processes} processes" if one.processes else "",
    )
    return f"{one.vendor} {one.index}", " · ".join((one.name, *filter(None, said)))


def _rate_rows(rates: Rates) -> list[tuple[str, str]]:
    rows = [
        ("memory read", _rate(rates.read_bytes_per_s, "B/s")),
        ("memory copy", _rate(rates.copy_bytes_per_s, "B/s")),
    ]
    for one in rates.engines:
        for kind, spread in one.gemm_per_s.items():
            name = one.kernels.get(kind, "")
            rows.append((f"{one.engine} {kind}", _rate(spread, "op/s") + (f"  {name}" if name else "")))
        for kind, spread in one.weight_read_bytes_per_s.items():
            rows.append((f"{one.engine} weights {kind}", _rate(spread, "B/s")))
        for what, spread in (("layer", one.layer_overhead_s), ("call", one.call_overhead_s)):
            if spread is not None:
                rows.append((f"{one.engine} per {what}", _micros(spread)))
    return rows


def _rate(spread: Spread, unit: str) -> str:
    scale, prefix = next((pair for pair in _SCALES if spread.median >= pair[0]), (1.0, ""))
    low, middle, high = (value / scale for value in (spread.low, spread.median, spread.high))
    return f"{middle:.3g} {prefix}{unit}  ({low:.3g} to {high:.3g})"


def _micros(spread: Spread) -> str:
    return f"{spread.median * 1e6:.3g} µs  ({spread.low * 1e6:.3g} to {spread.high * 1e6:.3g})"


def _engines(out: Console, engines: Iterable[EngineView]) -> None:
    rows = [("  engines", "here", "build", "takes", "because")]
    runs = [True]
    for one in engines:
        takes = size(one.installed_bytes) if one.installed_bytes else "-"
        if one.memory_bytes is not None:
            takes += f", {size(one.memory_bytes)} of memory"
        here = "yes" if one.installed else "no"
        rows.append((f"{one.name} {one.version}", here, one.build or "none", takes, _because(one)))
        runs.append(one.runs)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row, able in zip(rows, runs, strict=True):
        line = "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        mark = "[green]✓[/green]" if able else "[red]✗[/red]"
        out.print(f"[bold]{escape(line)}[/bold]" if row is rows[0] else f"{mark} {escape(line)}")
    out.print()


def _because(one: EngineView) -> str:
    rejected = [f"not {other.what.removeprefix('build ')}: {other.reason}" for other in one.rejected if one.runs]
    return "; ".join((one.reason, *rejected))


def _findings(out: Console, findings: tuple[Finding, ...]) -> None:
    for one in findings:
        out.print(f"{_MARKS[one.severity]} {escape(one.what)}")
        if one.why:
            out.print(f"    {_below(one.why)}", style="dim")
        if one.remedy:
            out.print(f"    [dim]try:[/dim] {_below(as_called(one.remedy))}")
    errors = sum(one.severity == "error" for one in findings)
    warnings = sum(one.severity == "warning" for one in findings)
    if errors:
        out.print(f"\n[red]{errors} of these prevent{'s' if errors == 1 else ''} serving[/red]")
    elif warnings:
        out.print(f"\nnothing prevents serving; {warnings} warning{'s' if warnings > 1 else ''}")
    else:
        out.print("\n[green]all is well[/green]")


def _below(text: str) -> str:
    """Further lines stand under the first."""
    return escape(text).replace("\n", "\n    ")


def _ago(seconds: float) -> str:
    for whole, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= whole:
            return f"{seconds / whole:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"

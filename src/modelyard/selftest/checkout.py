"""Rows that are measured by a benchmark of the checkout: nginx, the load generators and kill campaigns are no part of
the installed package."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from modelyard.selftest.row import CannotRun
from modelyard.selftest.sources import CHECKOUT

CANNOT_MEASURE = 2


async def benchmark(module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m benchmarks.MODULE ARGUMENTS --json FILE` wrote. Raises CannotRun where there is no checkout, or
    where the benchmark says that something it needs is absent."""
    if not (CHECKOUT / "benchmarks" / "__init__.py").is_file():
        raise CannotRun("this row needs the checkout", hint="run ./yard selftest in a clone of the repository")
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        report = Path(folder) / "report.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"benchmarks.{module}", *arguments, "--json", str(report)),
            cwd=CHECKOUT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            said, _ = await process.communicate()
        except asyncio.CancelledError:
            # It ends its own children on the way.
            process.terminate()
            await process.wait()
            raise
        text = said.decode(errors="replace").strip()
        if process.returncode == CANNOT_MEASURE:
            said = text.splitlines()[-1] if text else "the benchmark cannot measure here"
            raise CannotRun(said, hint=f"./yard dev python -m benchmarks.{module} says more")
        if not report.is_file():
            said = f"benchmarks.{module} ended with {process.returncode}: {text[-300:]}"
            raise CannotRun(said, hint=f"./yard dev python -m benchmarks.{module} says more")
        return json.loads(report.read_bytes())

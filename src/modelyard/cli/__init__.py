"""The command line: a file per verb."""

from __future__ import annotations


def main() -> None:
    """The `modelyard` command."""
    from modelyard.cli.app import run

    run()

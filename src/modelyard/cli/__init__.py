"""The command line: a file per verb."""

from __future__ import annotations

import sys


def main() -> None:
    """The `modelyard` command."""
    if sys.argv[1:3] == ["completion", "names"]:
        # A shell asks while somebody waits for it: nothing else is imported.
        from modelyard.cli.names import names

        print("\n".join(names("".join(sys.argv[3:4]))))
        return
    from modelyard.cli.app import run

    run()

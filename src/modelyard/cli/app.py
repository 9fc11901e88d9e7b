"""The `modelyard` command: its verbs, its exit codes, and the border where errors become sentences."""

from __future__ import annotations

import sys

import click
import typer

from modelyard.cli.gateway import gateway
from modelyard.cli.output import complain
from modelyard.errors import ModelyardError

EXIT_CODES = """Exit codes: 0 done · 1 failed · 2 usage or deployment file · 3 environment · 4 model refused or not
fetched · 5 cannot plan · 6 engine failed · 7 verification red · 8 address in use or refused · 9 locked or not running
· 130 interrupted."""

app = typer.Typer(
    name="modelyard",
    help="From a model on disk to a proved, OpenAI-compatible service, and kept there.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(gateway)


@app.callback()
def _root() -> None:
    pass


def run() -> None:
    """Parse, run, and end with the documented exit code."""
    try:
        app(standalone_mode=False)
    except ModelyardError as error:
        complain(error.message, error.hint)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        sys.exit(130)

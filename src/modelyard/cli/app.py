"""The `modelyard` command: its verbs, its exit codes, and the border where errors become sentences."""

from __future__ import annotations

import io
import os
import platform
import sys

import typer
from typer.exceptions import TyperException

from modelyard import __version__, settings
from modelyard.cli import debug, engines, keys, models, service, teams
from modelyard.cli.audit import audit
from modelyard.cli.chat import chat
from modelyard.cli.completion import completion_of
from modelyard.cli.doctor import doctor
from modelyard.cli.down import down
from modelyard.cli.explain import explain
from modelyard.cli.gateway import gateway
from modelyard.cli.logs import logs
from modelyard.cli.mistakes import explained
from modelyard.cli.options import Json
from modelyard.cli.output import complain, print_json, say
from modelyard.cli.plan import plan, schema
from modelyard.cli.replay import replay
from modelyard.cli.selftest import selftest
from modelyard.cli.status import restart, status, verify
from modelyard.cli.up import up
from modelyard.cli.usage import usage
from modelyard.errors import ModelyardError

EXIT_CODES = (
    "Exit codes: 0 done · 1 failed · 2 usage or deployment file · 3 environment · 4 model refused or not fetched · "
    "5 cannot plan · 6 engine failed · 7 verification red · 8 address in use or refused · 9 locked or not running · "
    "130 interrupted."
)

INTERRUPTED = 130

app = typer.Typer(
    name="modelyard",
    help="From a model on disk to a proved, OpenAI-compatible service, and kept there.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def version(json: Json = False) -> None:
    """Which Modelyard this is."""
    if json:
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        say(f"modelyard {__version__} (Python {platform.python_version()})")


VERBS = (
    *(up, down, status, doctor, logs, explain, replay, audit, chat, plan, verify, restart, usage, gateway, selftest),
    *(schema, completion_of(app), version),
)
for verb in VERBS:
    app.command()(verb)
app.add_typer(models.app, name="models")
app.add_typer(engines.app, name="engines")
app.add_typer(keys.app, name="keys")
app.add_typer(debug.app, name="debug")
app.add_typer(teams.app, name="teams")
app.add_typer(service.app, name="service")


@app.callback()
def _root() -> None:
    pass


def run() -> None:
    """Parse, run, and end with the documented exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter shows a question mark; that is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False, prog_name=settings.load().command)
    except ModelyardError as error:
        complain(error.message, error.hint)
        sys.exit(error.exit_code)
    except TyperException as error:
        message, hint = explained(error)
        # A group that was named alone has shown its help by now, and has nothing more to say.
        if message:
            complain(message, hint)
        sys.exit(2)
    except BrokenPipeError:
        # Whoever read us (`| head`) has enough. What is still buffered must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        complain("interrupted")
    sys.exit(code if isinstance(code, int) else 0)

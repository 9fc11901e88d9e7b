"""`modelyard chat`: talk to a deployment in the terminal, through the gateway like any client."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import Annotated

import typer

from modelyard.cli import chat_commands
from modelyard.cli.admin import Admin, running, state_directory
from modelyard.cli.chat_input import edit_lines, read_message, read_piped
from modelyard.cli.chat_session import Session, tell_cost
from modelyard.cli.conversation import DEFAULT_MAX_TOKENS, Conversation
from modelyard.cli.keys import MadeKey
from modelyard.cli.options import Json
from modelyard.cli.output import complain, print_json, say
from modelyard.control.views import DeploymentView
from modelyard.errors import ModelyardError, NotRunning, UsageError

KEY_TTL_S = 12 * 3600.0


def chat(
    name: Annotated[str | None, typer.Argument(help="A deployment; the only one if left out.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this once and end.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=2, help="0 always takes the likeliest token; the deployment's if left out."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = DEFAULT_MAX_TOKENS,
    json: Json = False,
) -> None:
    """Talk to a deployment; answers stream. Ctrl-C stops an answer, Ctrl-D (or /quit) ends, /help shows the rest.

    What is piped in is asked once: echo 'What is the capital of Japan?' | modelyard chat
    """
    if message is None and not sys.stdin.isatty():
        message = read_piped()
    if message is not None and not message.strip():
        raise UsageError("there is nothing to ask", hint="modelyard chat -m 'Hello', or run it in a terminal")
    if json and message is None:
        raise UsageError("--json needs --message", hint="modelyard chat --json -m 'Hello'")
    state = state_directory()
    where = running(state)
    admin = Admin(state)
    deployment = _chosen(admin, name)
    with _own_key(admin, deployment.name) as key:
        settings: dict[str, int | float] = {"max_tokens": max_tokens}
        if temperature is not None:
            settings["temperature"] = temperature
        talk = Conversation(deployment=deployment.name, system=system or "", settings=settings)
        session = Session(where, key, talk, deployment.context_tokens, quietly=json)
        if message is None:
            _converse(session)
            return
        answer = session.ask(message)
        if json:
            print_json({"deployment": deployment.name, "answer": answer})
        else:
            tell_cost(session.last, max_tokens)


@contextlib.contextmanager
def _own_key(admin: Admin, deployment: str) -> Generator[str]:
    """A key for this deployment and this conversation: of the stored ones only hashes are known. Should it not come to
    its revocation, it ends by itself."""
    body = {"name": f"chat {deployment}", "ttl_s": KEY_TTL_S, "deployments": [deployment]}
    made = admin.post("/keys", MadeKey, body)
    try:
        yield made.key
    finally:
        with contextlib.suppress(ModelyardError):
            admin.delete(f"/keys/{made.id}", dict[str, str])


def _chosen(admin: Admin, name: str | None) -> DeploymentView:
    views = {view.name: view for view in admin.get("/deployments", list[DeploymentView])}
    if not views:
        raise NotRunning("nothing is being served from here", hint="modelyard up")
    if name in views or (name is None and len(views) == 1):
        return views[name or next(iter(views))]
    message = "which deployment?" if name is None else f"there is no deployment {name!r}"
    raise UsageError(message, hint=" or ".join(f"modelyard chat {one}" for one in views))


def _converse(session: Session) -> None:
    edit_lines(f"{name} " if slash.takes else name for name, slash in chat_commands.COMMANDS.items())
    say(f"talking to {session.talk.deployment}; /help shows what you can do, Ctrl-D ends")
    while True:
        try:
            line = read_message()
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("\n(Ctrl-D ends)")
            continue
        try:
            if _done(session, line):
                return
        except KeyboardInterrupt:
            say("(stopped)")
        except ModelyardError as error:
            # The next question may well be answered: engines are started again.
            complain(error.message, error.hint)


def _done(session: Session, line: str) -> bool:
    """Whether the conversation is over."""
    question: str | None = line.strip()
    if line.startswith("/"):
        question = chat_commands.run(session, line.strip())
        if question is chat_commands.LEAVE:
            return True
    if question:
        session.ask(question)
        tell_cost(session.last, int(session.talk.settings.get("max_tokens", DEFAULT_MAX_TOKENS)))
    return False

"""What begins with a slash in `modelyard chat`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelyard.cli.chat_session import Session
from modelyard.cli.conversation import DEFAULT_MAX_TOKENS, SETTINGS, Conversation, set_value
from modelyard.cli.output import say
from modelyard.cli.visible import visible
from modelyard.errors import UsageError
from modelyard.records.base import UnreadableRecord, decode
from modelyard.state import write_atomically

# What follows a command: go on, ask this (again), or leave.
GO_ON, LEAVE = "", None
Next = str | None


@dataclass(frozen=True, slots=True)
class Slash:
    """`takes` is shown after the name."""

    takes: str
    does: str
    run: Callable[[Session, str], Next]


def run(session: Session, line: str) -> Next:
    """Do what `line` says. GO_ON, LEAVE, or a question to ask. Raises UsageError."""
    name, _, rest = line.partition(" ")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"there is no command {name}",
            hint=f"{meant}/help shows all; a message that begins with / needs a space first",
        )
    return COMMANDS[name].run(session, rest.strip())


def _help(session: Session, rest: str) -> Next:
    for name, slash in COMMANDS.items():
        if slash.does:
            say(f"  {f'{name} {slash.takes}'.rstrip():<22} {slash.does}")
    say('  """ ... """            a message of several lines; a backslash at the end of a line goes on too')
    say("  Ctrl-C                 stops an answer, or drops the line")
    return GO_ON


def _save(session: Session, rest: str) -> Next:
    path = _path(rest, "/save")
    if path.exists() and _read(path) is None:
        raise UsageError(f"{path} is there already and holds no conversation", hint="name another file")
    text = msgspec.json.format(msgspec.json.encode(session.talk), indent=2) + b"\n"
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", hint="name a file that you may write"
        ) from error
    say(f"{len(session.talk.exchanges)} exchanges saved in {path}")
    return GO_ON


def _load(session: Session, rest: str) -> Next:
    path = _path(rest, "/load")
    found = _read(path)
    if found is None:
        raise UsageError(f"{path} is no conversation that /save wrote", hint="check the name")
    session.begin_anew(msgspec.structs.replace(found, deployment=session.talk.deployment))
    say(f"{len(found.exchanges)} exchanges from {path}")
    if found.exchanges:
        say(f"> {visible(found.exchanges[-1].question)}\n{visible(found.exchanges[-1].answer)}")
    return GO_ON


def _clear(session: Session, rest: str) -> Next:
    session.begin_anew(msgspec.structs.replace(session.talk, exchanges=()))
    say("forgotten; system message and settings stay")
    return GO_ON


def _system(session: Session, rest: str) -> Next:
    session.talk = msgspec.structs.replace(session.talk, system=rest)
    say("system message set" if rest else "no system message")
    return GO_ON


def _set(session: Session, rest: str) -> Next:
    names = list(SETTINGS)
    if rest:
        settings = set_value(session.talk.settings, rest)
        session.talk = msgspec.structs.replace(session.talk, settings=settings)
        names = [rest.partition("=")[0].strip()]
    for name in names:
        theirs = str(DEFAULT_MAX_TOKENS) if name == "max_tokens" else "the deployment's"
        say(f"  {name:<18} {session.talk.settings.get(name, theirs)}")
    return GO_ON


def _tokens(session: Session, rest: str) -> Next:
    last = session.last
    say(f"about {session.tokens} of {session.context_tokens} tokens")
    if last.completion_tokens:
        say(f"last: {last.prompt_tokens} of prompt and {last.completion_tokens} of answer, as the engine counted")
    return GO_ON


def _retry(session: Session, rest: str) -> Next:
    if not session.talk.exchanges:
        raise UsageError("nothing was asked yet", hint="ask something first")
    question = session.talk.exchanges[-1].question
    session.talk = session.talk.without_last()
    return question


def _quit(session: Session, rest: str) -> Next:
    return LEAVE


COMMANDS: dict[str, Slash] = {
    "/help": Slash("", "this list", _help),
    "/retry": Slash("", "ask the last question again", _retry),
    "/clear": Slash("", "forget what was said", _clear),
    "/system": Slash("TEXT", "set the system message; without TEXT there is none", _system),
    "/set": Slash("NAME=VALUE", "such as temperature=0.5; without VALUE the deployment's own; without both, all", _set),
    "/tokens": Slash("", "how much of the context is taken", _tokens),
    "/save": Slash("FILE", "write the conversation to a file", _save),
    "/load": Slash("FILE", "go on with a saved one", _load),
    "/quit": Slash("", "leave, as Ctrl-D does", _quit),
    "/exit": Slash("", "", _quit),
}


def _path(text: str, command: str) -> Path:
    if not text:
        raise UsageError(f"{command} needs the name of a file", hint=f"{command} talk.json")
    return Path(text).expanduser().absolute()


def _read(path: Path) -> Conversation | None:
    try:
        return decode(path.read_bytes(), Conversation)
    except (OSError, UnreadableRecord):
        return None


__all__ = ["COMMANDS", "GO_ON", "LEAVE", "run"]

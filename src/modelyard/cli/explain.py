"""`modelyard explain`: the whole story of a request."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from modelyard.cli.admin import state_directory
from modelyard.cli.options import Json
from modelyard.cli.output import as_called, print_json, say
from modelyard.errors import UsageError
from modelyard.gateway.keyring import KeyLog, Keyring
from modelyard.observe.backwards import find, newest
from modelyard.observe.story import Chapter, Story, tell
from modelyard.records.journal import RequestRecord
from modelyard.state import StateDirectory


def explain(
    request_id: Annotated[
        str | None, typer.Argument(help="What a response bears in x-request-id: req_ and 16 hex digits.")
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="The request that ended last.")] = False,
    json: Json = False,
) -> None:
    """Tell the whole story of a request: limits, queue, the choice and why, retries, tokens, money."""
    if (request_id is None) == (not last):
        raise UsageError("name one request, or --last", hint="modelyard explain --last")
    state = state_directory()
    record = next(newest(state.journal), None) if request_id is None else find(state.journal, request_id)
    if record is None:
        raise _unknown(request_id)
    story = tell(record, _key_name(state, record.key_id))
    if json:
        print_json(story)
    else:
        _show(story)


def _unknown(request_id: str | None) -> UsageError:
    if request_id is None:
        return UsageError("the journal holds no request yet", hint="modelyard status")
    return UsageError(
        f"the journal holds no request {request_id!r}",
        hint="records are written at the end, and only of requests that showed a valid key; modelyard explain --last",
    )


def _key_name(state: StateDirectory, key_id: str) -> str:
    keys = Keyring()
    KeyLog(state.keys).follow(keys)
    known = keys.keys.get(key_id)
    return known.name if known is not None else ""


def _show(story: Story) -> None:
    say(f"{story.request_id}: {story.summary}")
    say(f"  {_when(story.record)}")
    for chapter in story.chapters:
        say(f"  {_moment(chapter)}  {chapter.text}")
    if story.advice:
        say(f"→ {as_called(story.advice)}")


def _when(record: RequestRecord) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(record.at))


def _moment(chapter: Chapter) -> str:
    return " " * 9 if chapter.at_s is None else f"{chapter.at_s:7.3f} s"

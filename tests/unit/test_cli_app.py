"""The command line as a whole: every verb explains itself, speaks JSON, and ends with a documented code."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from modelyard import errors
from modelyard.cli import app as cli
from modelyard.cli import output
from modelyard.cli.options import Json

# A server that prints nothing but where it listens; a script for shells; and a schema, which is JSON already.
WITHOUT_JSON = {"completion", "gateway", "schema"}


def verbs(app: typer.Typer, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command of the application, from the application itself: its full name and its function."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield f"{prefix}{command.name or command.callback.__name__}".replace("_", "-"), command.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from verbs(group.typer_instance, f"{prefix}{group.name} ")


VERBS = dict(verbs(cli.app))


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["modelyard", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.run()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_verbs_are_those_that_the_documentation_names() -> None:
    assert set(VERBS) >= {
        *(
            "up",
            "down",
            "status",
            "logs",
            "chat",
            "plan",
            "verify",
            "restart",
            "usage",
            "gateway",
            "schema",
            "completion",
            "version",
        ),
        *("models list", "models show", "engines list", "engines install", "engines remove", "engines import"),
        *("service show", "service install"),
        *("keys create", "keys list", "keys show", "keys rotate", "keys revoke"),
        *("teams create", "teams list"),
    }


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_and_each_of_its_options_explain_themselves(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(*verb.split(), "--help", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    first = (inspect.getdoc(VERBS[verb]) or "").splitlines()[0]
    assert first.endswith((".", "?")) and first.split("`")[0].strip() in " ".join(shown.split())
    for name, parameter in inspect.signature(VERBS[verb], eval_str=True).parameters.items():
        explained = [meta.help for meta in parameter.annotation.__metadata__]
        assert explained[0], f"{verb}: {name} says nothing"


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - WITHOUT_JSON))
def test_a_verb_speaks_json(verb: str) -> None:
    parameters = inspect.signature(VERBS[verb], eval_str=True).parameters
    assert parameters["json"].annotation == Json


def test_every_exit_code_of_an_error_is_documented() -> None:
    documented = {int(part.split()[0]) for part in cli.EXIT_CODES.removeprefix("Exit codes: ").split(" · ")}
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    assert codes <= documented
    assert documented == codes | {0, 130}


def test_version_is_told_in_words_and_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("version", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.startswith("modelyard 0.")
    assert run("version", "--json", monkeypatch=monkeypatch) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"version", "python"}


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), errors.CheckFailed("red", hint="look"), typer.Exit(6)])
def test_how_a_verb_ends_is_how_the_command_ends(
    raised: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(_: object) -> None:
        raise raised

    monkeypatch.setattr(cli, "print_json", ends)
    code = run("version", "--json", monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    match raised:
        case KeyboardInterrupt():
            assert (code, said) == (130, "error: interrupted\n")
        case errors.CheckFailed():
            assert (code, said) == (7, "error: red\ntry:   look\n")
        case _:
            assert (code, said) == (6, "")


def test_no_arguments_show_what_there_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch=monkeypatch)
    assert "Serve a model" in capsys.readouterr().out
    run("keys", monkeypatch=monkeypatch)
    shown = capsys.readouterr()
    assert "revoke" in shown.out and shown.err == ""


def test_help_names_the_command_as_it_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELYARD_COMMAND", "./yard")
    assert run("keys", "--help", monkeypatch=monkeypatch) == 0
    assert "./yard keys" in capsys.readouterr().out
    assert run("keys", "crate", monkeypatch=monkeypatch) == 2
    assert "did you mean create? ./yard keys --help" in capsys.readouterr().err


def test_what_is_printed_is_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]not bold[/bold] :smile: [/] 'quoted' " + "x" * 300
    output.say(text)
    assert capsys.readouterr().out == text + "\n"
    output.print_json({"text": text})
    assert json.loads(capsys.readouterr().out) == {"text": text}
    output.complain(text, f"{text}\nsecond line")
    assert capsys.readouterr().err == f"error: {text}\ntry:   {text}\n       second line\n"


@pytest.mark.parametrize("command", ["modelyard", "./yard", r"C:\yard"])
def test_hints_name_the_command_as_it_was_called(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_COMMAND", command)
    hint = "modelyard up FILE, or `modelyard keys create NAME`; the modelyard package; modelyard.yaml"
    expected = f"{command} up FILE, or `{command} keys create NAME`; the modelyard package; modelyard.yaml"
    assert output.as_called(hint) == expected

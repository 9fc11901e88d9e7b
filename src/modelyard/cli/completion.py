"""`modelyard completion`: what a shell must know to complete verbs, options and names.

The script holds verbs and options as they are now, so that a TAB starts no program for them; for names it calls
`completion names KIND`, which imports next to nothing."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer
import typer.main

from modelyard.errors import UsageError

PROGRAMS = ("modelyard", "yard")
# (verb, parameter) -> what its value names. A parameter that is not here takes a file or anything else.
NAMES: dict[tuple[str, str], str] = {
    ("up", "what"): "models",
    ("up", "engine"): "engines",
    ("plan", "what"): "models",
    ("plan", "engine"): "engines",
    ("status", "name"): "deployments",
    ("logs", "name"): "deployments",
    ("chat", "name"): "deployments",
    ("verify", "name"): "deployments",
    ("restart", "name"): "deployments",
    ("models show", "model"): "models",
    ("models fetch", "model"): "models",
    ("models verify", "model"): "models",
    ("models remove", "model"): "models",
    ("models pack", "what"): "models",
    ("models pack", "engine"): "engines",
    ("engines install", "name"): "engines",
    ("engines remove", "name"): "engines",
    ("engines doctor", "name"): "engines",
    ("engines conformance", "name"): "engines",
    ("engines conformance", "model"): "models",
    ("keys create", "deployments"): "deployments",
    ("keys change", "deployments"): "deployments",
    ("teams create", "deployments"): "deployments",
    ("teams change", "deployments"): "deployments",
}


class Shell(StrEnum):
    bash = "bash"
    zsh = "zsh"
    fish = "fish"


@dataclass(frozen=True)
class Option:
    """`names` is the kind of its value's names; `takes` says whether it has a value at all."""

    flags: tuple[str, ...]
    text: str
    takes: bool
    names: str = ""


@dataclass(frozen=True)
class Verb:
    """`words` is its full name; a group has `verbs`, anything else options and perhaps `names` for its argument."""

    words: tuple[str, ...]
    text: str
    options: tuple[Option, ...] = ()
    names: str = ""
    verbs: tuple[str, ...] = ()


def completion_of(app: typer.Typer) -> Callable[..., None]:
    """The verb, for the application that it stands in."""

    def completion(
        shell: Annotated[Shell | None, typer.Argument(help="Whose script to print.")] = None,
    ) -> None:
        """Print a script that makes a shell complete verbs, options and names.

        bash: modelyard completion bash > ~/.local/share/bash-completion/completions/modelyard.
        zsh: modelyard completion zsh > a folder of $fpath, as _modelyard.
        fish: modelyard completion fish > ~/.config/fish/completions/modelyard.fish.
        """
        if shell is None:
            raise UsageError("which shell?", hint="\n".join(f"modelyard completion {one.value}" for one in Shell))
        print(SCRIPTS[shell](list(tree(typer.main.get_command(app)))))

    return completion


def tree(command: Any, words: tuple[str, ...] = ()) -> Iterator[Verb]:
    """The command and all below it."""
    text = str(command.help or "").strip().partition("\n")[0]
    inner: dict[str, Any] = getattr(command, "commands", {})
    if inner:
        yield Verb(words, text, verbs=tuple(inner))
        for name, one in inner.items():
            yield from tree(one, (*words, name))
        return
    path = " ".join(words)
    options = [
        Option((*one.opts, *one.secondary_opts), str(one.help or ""), not one.is_flag, NAMES.get((path, one.name), ""))
        for one in command.params
        if one.param_type_name == "option"
    ]
    options.append(Option(("--help",), "Explain it.", False))
    arguments = [one.name for one in command.params if one.param_type_name == "argument"]
    kind = NAMES.get((path, arguments[0]), "") if arguments else ""
    yield Verb(words, text, tuple(options), kind)


def _case(lines: list[str]) -> str:
    return "\n".join(f"        {line}" for line in lines)


def bash(verbs: list[Verb]) -> str:
    """Also for zsh's `bashcompinit`; the program is called as it was typed, so `./yard` completes itself."""
    paths = [shlex.quote(" ".join(("", *verb.words))) for verb in verbs if verb.words]
    offers: list[str] = []
    values: list[str] = []
    for verb in verbs:
        path = " ".join(("", *verb.words))
        flags = " ".join(flag for option in verb.options for flag in option.flags)
        kind = f" kind={verb.names}" if verb.names else ""
        offers.append(
            f"{shlex.quote(path)}) verbs={shlex.quote(' '.join(verb.verbs))} flags={shlex.quote(flags)}{kind} ;;"
        )
        for option in verb.options:
            if option.takes:
                patterns = "|".join(shlex.quote(f"{path} {flag}") for flag in option.flags)
                values.append(f"{patterns}) value=1 kind={option.names} ;;")
    return f"""# Completion of modelyard for bash. Made by `modelyard completion bash`; make it again after an upgrade.
_modelyard() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb= verbs= flags= kind= value= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$verb ${{COMP_WORDS[i]}}" in
        {"|".join(paths)}) verb="$verb ${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$verb" in
{_case(offers)}
    esac
    case "$verb $before" in
{_case(values)}
    esac
    local found=$verbs
    [[ -z $value && $word == -* ]] && found=$flags kind=
    [[ -n $value ]] && found=
    [[ -n $kind ]] && found="$found $("${{COMP_WORDS[0]}}" completion names "$kind" 2>/dev/null)"
    COMPREPLY=($(compgen -W "$found" -- "$word"))
}}
complete -o default -F _modelyard {" ".join(PROGRAMS)}"""


def zsh(verbs: list[Verb]) -> str:
    paths = [shlex.quote(" ".join(("", *verb.words))) for verb in verbs if verb.words]
    about = {verb.words: verb.text for verb in verbs}
    offers: list[str] = []
    values: list[str] = []
    for verb in verbs:
        path = " ".join(("", *verb.words))
        inner = " ".join(_described(name, about[(*verb.words, name)]) for name in verb.verbs)
        flags = " ".join(_described(flag, option.text) for option in verb.options for flag in option.flags)
        kind = f" kind={verb.names}" if verb.names else ""
        offers.append(f"{shlex.quote(path)}) verbs=({inner}) flags=({flags}){kind} ;;")
        for option in verb.options:
            if option.takes:
                patterns = "|".join(shlex.quote(f"{path} {flag}") for flag in option.flags)
                values.append(f"{patterns}) value=1 kind={option.names} ;;")
    return f"""#compdef {" ".join(PROGRAMS)}
# Completion of modelyard for zsh. Made by `modelyard completion zsh`; make it again after an upgrade.
_modelyard() {{
    local verb= kind= value= i
    local -a verbs flags found
    for ((i = 2; i < CURRENT; i++)); do
        case "$verb $words[i]" in
        ({"|".join(paths)}) verb="$verb $words[i]" ;;
        esac
    done
    case "$verb" in
{_case([f"({line}" for line in offers])}
    esac
    case "$verb $words[CURRENT-1]" in
{_case([f"({line}" for line in values])}
    esac
    if [[ -z $value && $words[CURRENT] == -* ]]; then
        _describe option flags
        return
    fi
    [[ -z $value ]] && (( $#verbs )) && _describe command verbs
    if [[ -n $kind ]]; then
        found=(${{(f)"$($words[1] completion names $kind 2>/dev/null)"}})
        compadd -a found
    fi
    [[ $kind == models || ( -z $kind && ( -n $value || $#verbs -eq 0 ) ) ]] && _files
}}
if [[ $funcstack[1] == _modelyard ]]; then _modelyard "$@"; else compdef _modelyard {" ".join(PROGRAMS)}; fi"""


def _described(name: str, text: str) -> str:
    return shlex.quote(f"{name.replace(':', chr(92) + ':')}:{text}")


def fish(verbs: list[Verb]) -> str:
    lines = ["# Completion of modelyard for fish. Made by `modelyard completion fish`; make it again after an upgrade."]
    about = {verb.words: verb.text for verb in verbs}
    for program in PROGRAMS:
        for verb in verbs:
            if verb.verbs:
                seen = "".join(f"__fish_seen_subcommand_from {word}; and " for word in verb.words)
                condition = f"{seen}not __fish_seen_subcommand_from {' '.join(verb.verbs)}"
                lines += [
                    f"complete -c {program} -f -n {_fish(condition)} -a {name} -d {_fish(about[(*verb.words, name)])}"
                    for name in verb.verbs
                ]
                continue
            condition = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in verb.words)
            start = f"complete -c {program} -n {_fish(condition)}"
            if verb.names:
                lines.append(f"{start} -a {_fish(_fish_names(verb.names))}")
            lines += [_fish_option(start, option) for option in verb.options]
    return "\n".join(lines)


def _fish_option(start: str, option: Option) -> str:
    line = start
    for flag in option.flags:
        line += f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}"
    if option.takes:
        line += f" -x -a {_fish(_fish_names(option.names))}" if option.names else " -r"
    return f"{line} -d {_fish(option.text)}"


def _fish_names(kind: str) -> str:
    # The program as it was typed, `./yard` too; a substitution cannot stand where a command does, a variable can.
    return f"(set -l typed (commandline -opc); $typed[1] completion names {kind} 2>/dev/null)"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: dict[Shell, Callable[[list[Verb]], str]] = {Shell.bash: bash, Shell.zsh: zsh, Shell.fish: fish}

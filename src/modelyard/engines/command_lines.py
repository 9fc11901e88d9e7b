"""Which engine a command line starts, through the wrappers that people put around it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from modelyard.engines import import_llamacpp, import_vllm
from modelyard.engines.importing import ImportedCommand, NotTaken, Taken
from modelyard.errors import UsageError

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
# Wrapper -> its options that take a word.
_WRAPPERS: dict[str, frozenset[str]] = {
    "sudo": frozenset({"-u", "-g"}),
    "nohup": frozenset(),
    "exec": frozenset(),
    "time": frozenset(),
    "env": frozenset({"-u", "-C"}),
    "nice": frozenset({"-n"}),
    "setsid": frozenset(),
    "numactl": frozenset({"-N", "-m", "-C"}),
    "taskset": frozenset({"-c"}),
    "uv": frozenset({"--with", "--python", "-p"}),
    "uvx": frozenset({"--with", "--python", "-p"}),
}
_STARTS_AFTER = {"uv": ("run",), "taskset": ()}
# `docker run` options that stand alone; any other with a single word takes the next one.
_DOCKER_ALONE = frozenset(
    {
        "--rm",
        "-d",
        "--detach",
        "-i",
        "-t",
        "-it",
        "-ti",
        "-dit",
        "-itd",
        "-td",
        "--init",
        "--privileged",
        "--interactive",
        "--tty",
    }
)


# The words after the program's name, or None where it is not this engine's program.
Recognise = Callable[[Sequence[str]], Sequence[str] | None]
Reader = Callable[[Sequence[str], Mapping[str, str]], ImportedCommand]
_ENGINES: tuple[tuple[Recognise, Callable[[str], bool], Reader], ...] = (
    (import_vllm.program, import_vllm.is_image, import_vllm.read),
    (import_llamacpp.program, import_llamacpp.is_image, import_llamacpp.read),
)
KNOWN = "vllm serve, python -m vllm.entrypoints.openai.api_server, llama-server, or docker run with an image of these"


def read_command(line: str) -> ImportedCommand:
    """The deployment that a shell's command line starts. Raises UsageError where it is none that we can read."""
    words, environ = _without_assignments(_words(line))
    words, environ = _without_wrappers(words, environ)
    if words[:2] in (["docker", "run"], ["podman", "run"]):
        return _in_container(words[2:], environ)
    for program, _, read in _ENGINES:
        rest = program(words)
        if rest is not None:
            return read(rest, environ)
    shown = " ".join(words[:3]) or "an empty line"
    raise UsageError(f"{shown!r} starts no engine whose flags we know", hint=f"understood are: {KNOWN}")


def _words(line: str) -> list[str]:
    """As a shell splits them, up to what it would do next (`|`, `>`, `&`, `;`). Variables stay as they are written."""
    text = re.sub(r"\\\s*\n", " ", line.strip()).removeprefix("$ ")
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    try:
        words = list(lexer)
    except ValueError as error:
        raise UsageError(f"the command line cannot be split: {error}", hint="check its quotes") from error
    end = next((at for at, word in enumerate(words) if word and set(word) <= set("|&;<>")), len(words))
    # `2>&1`: the number belongs to the redirection.
    if end < len(words) and words[end].startswith((">", "<")) and end and words[end - 1].isdigit():
        end -= 1
    return words[:end]


def _without_assignments(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    rest, environ = list(words), dict[str, str]()
    while rest and (rest[0] == "export" or _ASSIGNMENT.fullmatch(rest[0])):
        word = rest.pop(0)
        if word != "export":
            name, _, value = word.partition("=")
            environ[name] = value
    return rest, environ


def _without_wrappers(words: list[str], environ: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    while words and words[0] in _WRAPPERS:
        wrapper = words.pop(0)
        for verb in _STARTS_AFTER.get(wrapper, ()):
            if words[:1] == [verb]:
                words.pop(0)
        while words and words[0].startswith("-"):
            option = words.pop(0)
            if option in _WRAPPERS[wrapper] and words:
                words.pop(0)
            if option == "--":
                break
        words, more = _without_assignments(words)
        environ = {**environ, **more}
    return words, environ


def _in_container(words: list[str], environ: dict[str, str]) -> ImportedCommand:
    """`docker run OPTIONS IMAGE ARGUMENTS`: the image's entry point is the engine."""
    inside, notes, published = dict[str, str](), list[NotTaken](), ""
    while words and words[0].startswith("-"):
        option, equals, value = words.pop(0).partition("=")
        if option in _DOCKER_ALONE:
            continue
        if not equals:
            value = words.pop(0) if words else ""
        if option in ("-e", "--env"):
            name, _, content = value.partition("=")
            inside[name] = content or environ.get(name, "")
        elif option in ("-p", "--publish"):
            published = value
        elif option in ("-v", "--volume", "--mount"):
            reason = "engines run without a container: name the model by its path on this machine"
            notes.append(NotTaken(said=f"{option} {value}", reason=reason))
        else:
            notes.append(NotTaken(said=f"{option} {value}".strip(), reason="of the container, which there is not"))
    if not words:
        raise UsageError("the docker command names no image", hint=f"understood are: {KNOWN}")
    image, *rest = words
    for program, is_image, read in _ENGINES:
        if is_image(image):
            # An entry point may be repeated by hand.
            found = program(rest)
            command = read(rest if found is None else found, inside)
            # Where it listens inside says nothing of where clients connect.
            kept = tuple(one for one in command.not_taken if not one.said.startswith("--host "))
            return _published(_noted(replace(command, not_taken=kept), tuple(notes)), published)
    raise UsageError(f"{image!r} is no image of an engine that we know", hint=f"understood are: {KNOWN}")


def _noted(command: ImportedCommand, notes: tuple[NotTaken, ...]) -> ImportedCommand:
    return replace(command, not_taken=(*command.not_taken, *notes))


def _published(command: ImportedCommand, published: str) -> ImportedCommand:
    """Clients knew the port of the host; `-p [address:]host:container`."""
    parts = published.split(":")
    if len(parts) < 2 or not parts[-2].isdigit():
        return command
    others = tuple(one for one in command.taken if one.key != "gateway.port")
    port = Taken(key="gateway.port", value=int(parts[-2]), flag=f"-p {published}")
    return replace(command, taken=(*others, port))

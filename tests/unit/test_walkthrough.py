"""The walk-through's own rules: what a page may hold, and when an output counts as the one that is written there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from walkthrough import File, Terminal, Typed, differs, normal, steps

PAGE = """
# A page

```console
$ echo hello
hello
$ printf '%s\\n' \\
    one
one
```

Text.

```yaml
# some.yaml
name: x
```

```console
$ cat some.yaml
...
name: x
```
"""


def test_a_page_is_its_commands_and_files_in_order() -> None:
    assert list(steps(PAGE)) == [
        Typed(5, "echo hello", ("hello",)),
        Typed(7, "printf '%s\\n' \\\n    one", ("one",)),
        File(14, "some.yaml", "# some.yaml\nname: x\n"),
        Typed(20, "cat some.yaml", ("...", "name: x")),
    ]


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ("```sh\nrm -rf /\n```", "nobody runs"),
        ("```\ntext\n```", "nobody runs"),
        ("```yaml\nname: x\n```", "nobody runs"),
        ("```console\nhello\n```", "begins with a command"),
        ("```console\n$ echo", "without an end"),
    ],
)
def test_a_block_that_would_not_be_run_is_refused(page: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        list(steps(page))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("up 25 s", "up 3 min"),
        ("8 tokens, 51 per second", "8 tokens, 117.2 per second"),
        ("my_29d6…", "my_0aA-bc_defghij"),
        ("sha256 b179c9523d0e", "sha256 000000000000"),
        ("2 cores, 24 GiB", "64 cores, 512 GiB"),
        ("a   b", "a b"),
    ],
)
def test_what_differs_from_run_to_run_is_alike(one: str, other: str) -> None:
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("expected", "found", "said"),
    [
        (["a", "b"], ["a", "b"], ""),
        (["a", "b"], ["a", "", "b"], ""),
        (["a", "b"], ["a", "c"], "wanted 'b', got 'c'"),
        (["a", "b"], ["a"], "no more"),
        (["a"], ["a", "b"], "not expected: 'b'"),
        (["a", "..."], ["a", "b", "c"], ""),
        (["...", "c"], ["a", "b", "c"], ""),
        (["...", "c"], ["a", "b"], "no more"),
        (["a", "...", "c"], ["a", "c"], ""),
        (["a … z"], ["a long way to z"], ""),
        (["a … z"], ["a z"], "wanted"),
        (["a.c"], ["abc"], "wanted"),
    ],
)
def test_an_output_is_compared_line_by_line(expected: list[str], found: list[str], said: str) -> None:
    difference = differs(expected, found)
    assert (said in difference) if said else difference == ""


def test_a_command_runs_at_a_terminal_and_its_variables_last(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, os.environ)
    assert terminal.run(Typed(1, "test -t 0 && test -t 1 && name=ada", ())) == (0, [])
    assert terminal.run(Typed(1, 'echo "hello $name"; exit 3', ())) == (3, ["hello ada"])


def test_what_is_typed_at_a_prompt_is_shown_as_a_person_sees_it(tmp_path: Path) -> None:
    shown = ("> yes", "you said yes", "> /quit")
    command = """read -p '> ' a; echo "you said $a"; read -p '> ' b"""
    assert Terminal(tmp_path, os.environ).run(Typed(1, command, shown)) == (0, list(shown))

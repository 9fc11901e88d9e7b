"""What a person types becomes one message."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modelyard.cli.chat_input import MORE, PROMPT, read_message


def typing(*lines: str) -> tuple[Callable[[str], str], list[str]]:
    """Somebody who types `lines` and then leaves; and the prompts that they saw."""
    left, prompts = list(lines), list[str]()

    def read(prompt: str) -> str:
        prompts.append(prompt)
        if not left:
            raise EOFError
        return left.pop(0)

    return read, prompts


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("hello",), "hello"),
        (("",), ""),
        (("first \\", "second\\", "third"), "first \nsecond\nthird"),
        (('"""', "one", "", "two", '"""'), "one\n\ntwo"),
        (('"""one', 'two"""'), "one\ntwo"),
        (('"""only"""',), "only"),
        (('  """a', 'b"""  '), "a\nb"),
        (("pasted\nlines",), "pasted\nlines"),
        (('say """ loud',), 'say """ loud'),
    ],
)
def test_lines_that_belong_together_are_one_message(lines: tuple[str, ...], message: str) -> None:
    read, prompts = typing(*lines)
    assert read_message(read) == message
    assert prompts == [PROMPT, *[MORE] * (len(lines) - 1)]


@pytest.mark.parametrize("lines", [(), ("begun \\",), ('"""', "begun")])
def test_the_end_of_input_ends_also_what_was_begun(lines: tuple[str, ...]) -> None:
    with pytest.raises(EOFError):
        read_message(typing(*lines)[0])

"""/tokenize and /detokenize as our engine servers read them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from programs import load_program

wire: Any = load_program("tokenize_wire")
llamacpp: Any = load_program("llamacpp_wire")
BadRequest: type[Exception] = load_program("http1").BadRequest
CHAT = [{"role": "user", "content": "hi"}]


def count(**fields: Any) -> Any:
    return wire.parse_tokenize(json.dumps({"model": "m", **fields}).encode(), "m")


def test_a_text_gets_what_the_tokenizer_adds_and_a_chat_what_its_template_writes() -> None:
    text, chat = count(prompt="hi"), count(messages=CHAT)
    assert (text.text, text.special) == ("hi", True)
    assert (chat.text, chat.messages, chat.special, chat.opening) == (None, CHAT, False, True)
    assert count(messages=CHAT, add_generation_prompt=False).opening is False


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ({}, "prompt", 400),
        ({"prompt": "a", "messages": CHAT}, "prompt", 400),
        ({"prompt": ["a"]}, "prompt", 400),
        ({"messages": []}, "messages", 400),
        ({"messages": CHAT, "tools": {}}, "tools", 400),
        ({"prompt": "a", "return_token_strs": 1}, "return_token_strs", 400),
        ({"prompt": "a", "model": "x"}, "model", 404),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(fields: dict[str, Any], param: str, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        count(**fields)
    refused: Any = caught.value
    assert (refused.param, refused.status) == (param, status)


@pytest.mark.parametrize("tokens", [None, [-1], [True], [1.5], "1", [1] * ((1 << 20) + 1)])
def test_only_token_ids_are_read_back(tokens: Any) -> None:
    with pytest.raises(BadRequest):
        wire.parse_detokenize(json.dumps({"tokens": tokens}).encode(), "m")
    assert wire.parse_detokenize(b'{"tokens":[1,0]}', "m") == [1, 0]


def test_a_token_that_is_a_part_of_a_character_has_a_text_too() -> None:
    answer = {"tokens": [{"id": 3, "piece": "hi"}, {"id": 4, "piece": [230, 157]}]}
    assert llamacpp.read_tokens(answer) == ([3, 4], ["hi", "\ufffd"])


def test_a_chat_is_written_out_as_it_would_be_answered() -> None:
    fields = llamacpp.template_fields(count(messages=CHAT, tools=[{"type": "function"}]))
    assert fields == {"messages": CHAT, "add_generation_prompt": True, "tools": [{"type": "function"}]}
    with pytest.raises(BadRequest, match="no place for tools"):
        llamacpp.check_messages(CHAT, [{"type": "function"}], tools_known=False)
    with pytest.raises(BadRequest, match="only parts of type text"):
        llamacpp.check_messages([{"role": "user", "content": [{"type": "image_url"}]}], [], tools_known=True)

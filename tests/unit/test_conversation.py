"""A conversation as values: what is sent, what of it still fits, and how it is set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.cli.conversation import (
    Conversation,
    Exchange,
    Measure,
    body,
    set_value,
    to_leave_out,
)
from modelyard.errors import UsageError
from modelyard.records.base import decode, encode

TEXTS = st.text(alphabet="abc é日\n", max_size=400)
EXCHANGES = st.lists(st.builds(lambda q, a: Exchange(question=q, answer=a), TEXTS, TEXTS), max_size=12).map(tuple)
CONVERSATIONS = st.builds(
    lambda system, exchanges: Conversation(deployment="small", system=system, exchanges=exchanges), TEXTS, EXCHANGES
)
MEASURES = st.floats(0.5, 8).map(lambda chars: Measure(chars_per_token=chars))


def talk(*said: tuple[str, str], **fields: object) -> Conversation:
    exchanges = tuple(Exchange(question=question, answer=answer) for question, answer in said)
    return Conversation(deployment="small", exchanges=exchanges, **fields)  # pyright: ignore[reportArgumentType]


def test_every_turn_is_sent_in_order_and_the_system_message_first() -> None:
    messages = talk(("a", "b"), ("c", "d"), system="be brief").messages("e")
    assert [(one["role"], one["content"]) for one in messages] == [
        ("system", "be brief"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
        ("user", "e"),
    ]


def test_the_request_streams_and_asks_for_its_usage() -> None:
    asked = body(talk(settings={"temperature": 0.5}), [{"role": "user", "content": "hi"}])
    assert asked["model"] == "small" and asked["stream"] is True
    assert asked["stream_options"] == {"include_usage": True}
    assert (asked["temperature"], asked["max_tokens"]) == (0.5, 512)


@given(CONVERSATIONS, TEXTS, st.integers(600, 20_000), MEASURES)
def test_as_little_as_possible_is_left_out_and_the_rest_fits(
    conversation: Conversation, question: str, context: int, measure: Measure
) -> None:
    room = context - 512
    left_out = to_leave_out(conversation, question, context, measure)
    fits = measure.tokens(conversation.messages(question, left_out=left_out)) <= room
    assert fits or left_out == len(conversation.exchanges)
    if left_out:
        assert measure.tokens(conversation.messages(question, left_out=left_out - 1)) > room


@given(CONVERSATIONS, TEXTS, st.integers(0, 20))
def test_system_message_and_question_always_stay(conversation: Conversation, question: str, left_out: int) -> None:
    messages = conversation.messages(question, left_out=left_out)
    assert messages[-1] == {"role": "user", "content": question}
    assert (messages[0]["role"] == "system") is bool(conversation.system)


@given(st.floats(1, 6), st.integers(1, 20))
def test_the_measure_is_learnt_from_what_the_engine_counted(chars_per_token: float, count: int) -> None:
    messages = [{"role": "user", "content": "x" * 400}] * count
    counted = round(400 * count / chars_per_token) + 8 * count
    learnt = Measure().learnt(messages, counted)
    assert counted <= learnt.tokens(messages) <= counted * 1.11 + 2


def test_a_short_text_teaches_nothing() -> None:
    assert Measure().learnt([{"role": "user", "content": "hi"}], 30) == Measure()
    assert Measure().learnt([{"role": "user", "content": "x" * 500}], 0) == Measure()


@given(CONVERSATIONS)
def test_what_was_saved_is_what_is_loaded(conversation: Conversation) -> None:
    assert decode(encode(conversation), Conversation) == conversation


def test_a_setting_is_set_and_given_back() -> None:
    settings = set_value({"max_tokens": 100}, "temperature = 0.5")
    assert settings == {"max_tokens": 100, "temperature": 0.5}
    assert set_value(settings, "seed=7")["seed"] == 7
    assert set_value(settings, "temperature=") == {"max_tokens": 100}


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("temprature=1", "there is no setting 'temprature'", "did you mean temperature?"),
        ("zzz=1", "there is no setting 'zzz'", "known are temperature"),
        ("temperature", "temperature needs a value", "/set temperature=VALUE"),
        ("temperature=hot", "temperature cannot be 'hot'", "a number from 0 to 2"),
        ("temperature=3", "temperature cannot be 3", "a number from 0 to 2"),
        ("temperature=nan", "temperature cannot be nan", "a number from 0 to 2"),
        ("max_tokens=1.5", "max_tokens cannot be '1.5'", "a whole number from 1"),
        ("max_tokens=0", "max_tokens cannot be 0", "a whole number from 1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        set_value({}, text)
    assert said in caught.value.message and hint in caught.value.hint

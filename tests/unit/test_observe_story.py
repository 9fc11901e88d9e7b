"""The story of a request and the events of its record: everything that happened, nothing that did not."""

from __future__ import annotations

from typing import get_args

import pytest
from msgspec.structs import replace

from journal_records import answered, choice
from modelyard.observe.advice import advice
from modelyard.observe.events import AccessEvent, ErrorEvent, PerformanceEvent, events_of
from modelyard.observe.story import tell
from modelyard.records.journal import Attempt, Outcome

TRIED = Attempt(replica="small-1", launch="l-1", began_s=0.3, ended_s=0.4, kind="failed", cause="the engine closed it")


def told(**changes: object) -> str:
    story = tell(answered(**changes), "ci")
    return "\n".join([story.summary, *(chapter.text for chapter in story.chapters), story.advice])


def test_a_good_request_is_told_from_arrival_to_money() -> None:
    text = told(decision=choice(2, 1, took="small-1"), replica="small-1", cost_pico=1_500_000, trace_id="ab" * 16)
    for part in (
        "200, complete, after 2.000 s",
        "/v1/chat/completions with 800 bytes, key 0123456789ab (ci), trace abab",
        "asked for small, as a stream; within every limit; a seat after 0.250 s in the queue",
        "saw small-0 2/4, small-1 1/4 in flight; took small-1: least in flight",
        "first token, from small-1 (l-0)",
        "complete, 4,000 bytes to the client",
        "10 prompt tokens (4 of them cached) and 7 of the answer, counted by the engine; 4.0 tokens/s after the first",
        "cost 0.0000015",
    ):
        assert part in text


def test_earlier_sendings_and_their_causes_are_part_of_the_story() -> None:
    text = told(tried=(TRIED,), attempts=2, resumed=1)
    assert "small-1 (l-1) failed, asked at 0.300 s: the engine closed it" in text
    assert "went on at another replica in the middle of the answer, once" in text
    assert "small-0 (l-0, sending 2)" in text


def test_a_replica_that_was_barred_is_told_with_the_reason() -> None:
    seen = choice(0, 1, took="small-1")
    barred = replace(seen, candidates=(replace(seen.candidates[0], barred="ejected"), seen.candidates[1]))
    assert "saw small-0 0/4 (ejected), small-1 1/4 in flight; took small-1" in told(decision=barred)


def test_a_refusal_says_what_was_wrong_and_what_to_do() -> None:
    nothing = {"attempts": 0, "decision": None, "replica": "", "launch": "", "usage_source": "none", "queued_s": 0.0}
    text = told(status=503, outcome="unavailable", error="overloaded", first_byte_s=0.0, **nothing)
    assert "no seat: overloaded" in text and "first token" not in text and "tokens" not in text
    assert "limits.max_queued" in text
    early = told(status=404, outcome="refused", error="model_not_found", deployment="", first_byte_s=0.0, **nothing)
    assert "refused before a deployment was known: model_not_found" in early


@pytest.mark.parametrize("outcome", get_args(Outcome))
def test_every_outcome_has_its_words_and_all_but_one_an_advice(outcome: Outcome) -> None:
    record = answered(outcome=outcome, error="" if outcome == "complete" else "something")
    assert tell(record).summary
    assert bool(advice(record)) == (outcome != "complete")
    assert "DEPLOYMENT" not in advice(record)


def test_each_kind_of_event_shows_its_part_of_a_record() -> None:
    (access,) = events_of(answered(), "access")
    assert isinstance(access, AccessEvent) and access.key_id == "0123456789ab" and access.at == 1_700_000_003.0
    (performance,) = events_of(answered(), "performance")
    assert isinstance(performance, PerformanceEvent)
    assert (performance.first_token_s, performance.tokens_per_s) == (0.5, 4.0)
    assert events_of(answered(), "error") == ()


def test_of_a_plain_answer_no_token_rate_is_claimed() -> None:
    (event,) = events_of(answered(stream=False), "performance")
    assert isinstance(event, PerformanceEvent)
    assert (event.first_token_s, event.tokens_per_s) == (None, None)


def test_a_sending_that_another_made_good_is_an_error_that_was_recovered() -> None:
    lost = Attempt(replica="small-2", launch="l", began_s=0.1, ended_s=0.2, kind="hedge_lost")
    (event,) = events_of(answered(tried=(TRIED, lost)), "error")
    assert isinstance(event, ErrorEvent)
    assert (event.error, event.cause, event.recovered) == ("attempt_failed", "the engine closed it", True)
    both = events_of(answered(tried=(TRIED,), outcome="truncated", error="it closed again"), "error")
    assert [(one.error, one.recovered) for one in both if isinstance(one, ErrorEvent)] == [
        ("attempt_failed", False),
        ("truncated", False),
    ]

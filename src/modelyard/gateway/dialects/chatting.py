"""Who turns the answers of plain chat requests back. Nearly always nobody: their bytes travel as they came."""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.gateway.dialects.both_names import BothNamesLane, Field, with_both_names
from modelyard.gateway.dialects.chat import decode, only_choice
from modelyard.gateway.dialects.checks import CheckedLane, Expectation, expectation
from modelyard.gateway.dialects.dialect import CHAT, Lane, Speaker
from modelyard.gateway.fields import AnyCall
from modelyard.gateway.lanes import BrokenStream, RawLane, Usage, usage_of
from modelyard.records.topology import Deployment


@dataclass(frozen=True, slots=True)
class ChatSpeaker:
    """Answers of an engine that is known to tell thoughts, under one name."""

    field: Field

    def lane(self, *, usage_asked: bool, chunked: bool) -> Lane:
        return BothNamesLane(usage_asked, chunked, self.field)

    def whole(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        return with_both_names(body, self.field), usage_of(body), ""


class PlainSpeaker:
    """Answers as they come."""

    def lane(self, *, usage_asked: bool, chunked: bool) -> Lane:
        return RawLane(usage_asked, chunked)

    def whole(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        return body, usage_of(body), ""


@dataclass(frozen=True, slots=True)
class CheckingSpeaker:
    """Another speaker, whose answers are looked at."""

    speaker: Speaker
    expectation: Expectation

    def lane(self, *, usage_asked: bool, chunked: bool) -> Lane:
        return CheckedLane(self.speaker.lane(usage_asked=usage_asked, chunked=chunked), self.expectation)

    def whole(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        out, usage, _ = self.speaker.whole(body)
        try:
            choice, said = only_choice(decode(body))
        except BrokenStream:
            return out, usage, ""
        return out, usage, self.expectation.verdict(said, choice.finish_reason)


_CHATS: dict[str, ChatSpeaker] = {
    "reasoning": ChatSpeaker("reasoning"),
    "reasoning_content": ChatSpeaker("reasoning_content"),
}
_PLAIN = PlainSpeaker()


def speaker_of(call: AnyCall, endpoint: str, deployment: Deployment) -> Speaker | None:
    """Who turns the answer to a chat or completion request back; None where its bytes pass."""
    speaker = _CHATS.get(deployment.reasoning_field) if endpoint == CHAT else None
    expected = expectation(call)
    return speaker if expected is None else CheckingSpeaker(speaker or _PLAIN, expected)

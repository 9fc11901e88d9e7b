"""OpenAI's Responses API: /v1/responses, without a memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import msgspec

from modelyard.gateway.dialects.bounds import native_body, read_call
from modelyard.gateway.dialects.chat import decode
from modelyard.gateway.dialects.dialect import CHAT, RESPONSES, Lane, Spoken, as_chat
from modelyard.gateway.dialects.native import RESPONSE_ENDS, NativeSpeaker
from modelyard.gateway.dialects.responses_answer import Frame, ResponseStream, whole
from modelyard.gateway.dialects.responses_request import NAMES, ResponsesCall, chat_fields, ignored
from modelyard.gateway.dialects.rewrite import RewriteLane
from modelyard.gateway.lanes import Usage
from modelyard.gateway.strict_json import Body


@dataclass(frozen=True, slots=True)
class ResponsesSpeaker:
    """Gives a chat answer as a response."""

    frame: Frame

    def lane(self, *, usage_asked: bool, chunked: bool) -> Lane:
        return RewriteLane(ResponseStream(self.frame), chunked=chunked)

    def whole(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        answer = decode(body)
        return whole(answer, self.frame), answer.usage, ""


def read_responses(body: Body, request_id: str) -> Spoken:
    """Raises Refusal (400)."""
    call, unknown = read_call(body, ResponsesCall)
    call.check()
    frame = Frame(request_id.removeprefix("req_"), int(time.time()), call)
    return Spoken(
        endpoint=RESPONSES,
        over=CHAT,
        parsed=as_chat(chat_fields(call), NAMES),
        # An engine that would keep responses is told not to.
        native=partial(native_body, msgspec.structs.replace(call, store=False)),
        native_speaker=NativeSpeaker(RESPONSE_ENDS),
        speaker=ResponsesSpeaker(frame),
        names=NAMES,
        stripped=unknown | ignored(call),
    )

"""Anthropic's Messages API: /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import msgspec

from modelyard.gateway.dialects.anthropic_answer import MessageStream, Untellable, message
from modelyard.gateway.dialects.anthropic_request import (
    NAMES,
    CountCall,
    MessagesCall,
    chat_fields,
    chat_messages,
    chat_tools,
    ignored,
)
from modelyard.gateway.dialects.bounds import native_body, read_call
from modelyard.gateway.dialects.chat import decode
from modelyard.gateway.dialects.dialect import CHAT, COUNT_TOKENS, MESSAGES, TOKENIZE, Lane, NoWords, Spoken, as_chat
from modelyard.gateway.dialects.native import MESSAGE_ENDS, NativeSpeaker
from modelyard.gateway.dialects.rewrite import RewriteLane
from modelyard.gateway.dialects.tokens import parsed_tokenize
from modelyard.gateway.lanes import BrokenStream, Usage
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.strict_json import Body


@dataclass(frozen=True, slots=True)
class MessagesSpeaker:
    """Gives a chat answer as a message."""

    message_id: str
    model: str

    def lane(self, *, usage_asked: bool, chunked: bool) -> Lane:
        return RewriteLane(MessageStream(self.message_id, self.model), chunked=chunked)

    def whole(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        answer = decode(body)
        try:
            return message(answer, self.message_id, self.model), answer.usage, ""
        except Untellable as error:
            refusal = Refusal(502, f"{error}; ask again", code="tool_arguments_invalid")
            raise NoWords(refusal, answer.usage) from None


class _Counted(msgspec.Struct):
    count: int


class CountSpeaker:
    """Gives the answer to a tokenize request as a count."""

    def lane(self, *, usage_asked: bool, chunked: bool) -> Lane:
        raise BrokenStream("the engine answered a count with a stream")

    def whole(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        try:
            counted = msgspec.json.decode(body, type=_Counted)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BrokenStream(f"the engine's answer holds no count: {error}") from None
        return msgspec.json.encode({"input_tokens": counted.count}), None, ""


def read_messages(body: Body, request_id: str) -> Spoken:
    """Raises Refusal (400)."""
    call, unknown = read_call(body, MessagesCall)
    return Spoken(
        endpoint=MESSAGES,
        over=CHAT,
        parsed=as_chat(chat_fields(call), NAMES),
        native=partial(native_body, call),
        native_speaker=NativeSpeaker(MESSAGE_ENDS),
        speaker=MessagesSpeaker(f"msg_{request_id.removeprefix('req_')}", call.model),
        names=NAMES,
        stripped=unknown | ignored(call),
    )


def read_count(body: Body, request_id: str) -> Spoken:
    """Raises Refusal (400)."""
    call, unknown = read_call(body, CountCall)
    fields = {"model": call.model, "messages": chat_messages(call), "tools": chat_tools(call.tools)}
    return Spoken(
        endpoint=COUNT_TOKENS,
        over=TOKENIZE,
        parsed=parsed_tokenize({name: value for name, value in fields.items() if value is not None}),
        native=partial(native_body, call),
        native_speaker=None,
        speaker=CountSpeaker(),
        names=NAMES,
        # Only what a request to answer could have is unknown by name and harmless to a count.
        stripped=unknown - frozenset(MessagesCall.__struct_fields__),
    )

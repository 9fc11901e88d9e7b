"""When a replica dies in the middle of a stream: another one goes on from the text that the client has already.

What was sent is kept as the bytes that it was, and read only at a death. The other replica is asked for the rest: of a
chat by a last message that it continues (vLLM's `continue_final_message`), of a completion by a longer prompt. Its
events are told under the first one's id, without a second role; its usage is counted as if there had been one engine.

How many tokens were sent is the number of events with text, which is exact where an engine sends each token by itself:
prompt and answer together are exact always, because the second engine counts both."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from modelyard.gateway.dialects.dialect import CHAT, COMPLETION, Lane, Speaker
from modelyard.gateway.fields import AnyCall, ChatCall
from modelyard.gateway.lanes import BrokenStream, CachedTokens, RawLane, Usage
from modelyard.gateway.limits import WIRE
from modelyard.records.topology import Deployment

_END_OF_EVENT = b"\n\n"
_PLAIN_FORMATS = (None, "text")


def can_be_resumed(call: AnyCall, endpoint: str, deployment: Deployment) -> bool:
    """Whether a stream of this request can be continued by another engine so that nobody could tell: one choice of
    plain text, drawn without chance or from a seed, by an engine that can go on from a text."""
    sampled = call.seed is None and call.temperature != 0
    penalised = call.presence_penalty or call.frequency_penalty
    if not call.stream or sampled or penalised or call.n not in (None, 1) or call.logprobs:
        return False
    if isinstance(call, ChatCall):
        form = call.response_format.get("type") if call.response_format is not None else None
        is_plain = form in _PLAIN_FORMATS and not call.tools and not call.ends_with_answer
        return endpoint == CHAT and deployment.continues_chat and is_plain
    # Without max_tokens an engine's own default would apply to the rest alone.
    return (
        endpoint == COMPLETION
        and isinstance(call.prompt, str)
        and call.max_tokens is not None
        and not (call.echo or call.suffix)
    )


class Kept:
    """What a client has been sent of a stream, to the byte; given up where it grows beyond what we hold."""

    __slots__ = ("_chunked", "_parts", "_size", "is_whole")

    def __init__(self, chunked: bool) -> None:
        self._chunked = chunked
        self._parts: list[bytes] = []
        self._size = 0
        self.is_whole = True

    def add(self, out: bytes) -> None:
        self._size += len(out)
        if self._size <= WIRE.kept_stream_bytes:
            self._parts.append(out)
        elif self.is_whole:
            self.is_whole = False
            self._parts.clear()

    def events(self) -> bytes:
        """Without the frames of chunks."""
        sent = b"".join(self._parts)
        return _unframed(sent) if self._chunked else sent


def _unframed(data: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while at < len(data):
        end = data.index(b"\r\n", at)
        size = int(data[at:end], 16)
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts)


class _Delta(Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw | None = None

    @property
    def holds_more_than_text(self) -> bool:
        more = self.reasoning or self.reasoning_content or self.refusal or self.tool_calls
        return bool(more) or self.function_call is not None


class _Choice(Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str = ""
    finish_reason: str | None = None


class _Event(Struct):
    id: str | None = None
    created: int | None = None
    choices: list[_Choice] | None = None
    usage: Usage | None = None


_decode_event = msgspec.json.Decoder(_Event).decode


class Said(Struct):
    """What a client has of an answer. `tokens` is the number of events with text. `blank` is the white space at its end
    that came in `blank_tokens` events of its own: templates cut it off, so that an engine would say it again. `usage`
    is what was stated at its end already."""

    id: str = ""
    created: int | None = None
    text: str = ""
    tokens: int = 0
    blank: str = ""
    blank_tokens: int = 0
    finished: bool = False
    usage: Usage | None = None

    def add(self, text: str) -> None:
        if not text:
            return
        self.tokens += 1
        if text.isspace():
            self.blank += text
            self.blank_tokens += 1
        else:
            self.text += self.blank + text
            self.blank, self.blank_tokens = "", 0


def said_in(events: bytes) -> Said | None:
    """None where there is more than the text of one choice."""
    said, texts = Said(), list[str]()
    for event in events.split(_END_OF_EVENT):
        if not event.startswith(b"data:"):
            continue
        try:
            seen = _decode_event(event[5:])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        said.id = said.id or seen.id or ""
        said.created = said.created if said.created is not None else seen.created
        said.usage = said.usage or seen.usage
        for choice in seen.choices or ():
            if choice.index or (choice.delta is not None and choice.delta.holds_more_than_text):
                return None
            texts.append((choice.delta.content if choice.delta is not None else None) or choice.text)
            said.finished = said.finished or choice.finish_reason is not None
    for text in texts:
        said.add(text)
    return said


class Rest(Struct, frozen=True):
    """What is asked of another replica. `carried` are the tokens of the answer that go along in its prompt. Where
    `only_end`, nothing of its text is wanted: all of it has been sent, only how it ends is missing."""

    body: bytes
    said: Said
    carried: int
    only_end: bool


def rest_of(body: bytes, endpoint: str, said: Said) -> Rest | None:
    """The request for what is left of an answer, from the request for the whole. None where it cannot be asked for:
    where a stop text may have begun already, which the other engine would not see."""
    fields: dict[str, Any] = msgspec.json.decode(body)
    if any(_begins_at_the_end(stop, said.text + said.blank) for stop in _texts(fields.get("stop"))):
        return None
    carried = said.tokens - said.blank_tokens
    only_end = said.finished
    for name in ("max_tokens", "max_completion_tokens"):
        if (most := fields.get(name)) is not None:
            only_end = only_end or most <= said.tokens
            fields[name] = max(1, most - carried)
    if only_end:
        fields["max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"] = 1
    if said.text and endpoint == CHAT:
        fields["messages"] = [*fields["messages"], {"role": "assistant", "content": said.text}]
        fields["continue_final_message"], fields["add_generation_prompt"] = True, False
    elif said.text:
        fields["prompt"] += said.text
    return Rest(msgspec.json.encode(fields), said, carried, only_end)


def _texts(stop: str | list[str] | None) -> list[str]:
    return [stop] if isinstance(stop, str) else stop or []


def _begins_at_the_end(stop: str, text: str) -> bool:
    return any(text.endswith(stop[:length]) for length in range(1, len(stop)))


class KeepingLane:
    """Another lane, which notes what goes through it to the client. What comes before the first piece of an answer is
    held back until then, and lost with the replica that said it."""

    __slots__ = ("_held", "_kept", "_lane")
    verdict = ""

    def __init__(self, lane: Lane, kept: Kept) -> None:
        self._lane, self._kept = lane, kept
        self._held: list[bytes] = []

    @property
    def usage(self) -> Usage | None:
        return self._lane.usage

    @property
    def events(self) -> int:
        return self._lane.events

    @property
    def has_delta(self) -> bool:
        return self._lane.has_delta

    def passes(self, raw: bytes) -> bool:
        if not self._lane.passes(raw):
            return False
        self._kept.add(raw)
        return True

    def read(self, raw: bytes, pieces: list[bytes], done: bool) -> bytes:
        out = self._lane.read(raw, pieces, done)
        if not self._lane.has_delta:
            self._held.append(out)
            return out
        if self._held:
            held, self._held = self._held, []
            self._kept.add(b"".join(held))
        self._kept.add(out)
        return out

    def failed(self, message: str, code: str) -> bytes:
        return self._lane.failed(message, code)


class ResumedLane(RawLane):
    """The stream of the replica that goes on, told as the rest of the first one's."""

    __slots__ = ("_blank", "_carried", "_rest")

    def __init__(self, usage_asked: bool, chunked: bool, rest: Rest) -> None:
        super().__init__(usage_asked, chunked)
        self._rest = rest
        self._carried = rest.carried
        self._blank = rest.said.blank

    def passes(self, raw: bytes) -> bool:
        return False

    def read(self, raw: bytes, pieces: list[bytes], done: bool) -> bytes:
        return super().read(b"", pieces, done)

    def _keep(self, event: bytes) -> bool:
        before, self.usage = self.usage, None
        kept = super()._keep(event) and (self.usage is None or self._rest.said.usage is None)
        self.usage = self._as_one(self.usage) if self.usage is not None else before
        return kept

    def _as_one(self, usage: Usage) -> Usage:
        """Of both engines together: what went along in the prompt was the answer's; what was thrown away, nobody's."""
        if self._rest.said.usage is not None:
            return self._rest.said.usage
        said = 0 if self._rest.only_end else usage.completion_tokens or 0
        own = self._rest.said.tokens if self._rest.only_end else self._carried + said
        cached = min(usage.cached_tokens, max(0, usage.prompt_tokens - self._rest.carried))
        return Usage(max(0, usage.prompt_tokens - self._rest.carried), own, CachedTokens(cached))

    def _told(self, events: bytes) -> bytes:
        return b"".join(map(self._tell, events[:-2].split(_END_OF_EVENT))) if events else b""

    def _tell(self, event: bytes) -> bytes:
        data = event.removeprefix(b"data:").strip()
        if data == b"[DONE]" or not event.startswith(b"data:"):
            return event + _END_OF_EVENT
        try:
            value = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BrokenStream(f"an event of the engine is not JSON: {error}") from None
        said = self._rest.said
        if said.id:
            value["id"] = said.id
        if said.created is not None:
            value["created"] = said.created
        usage = self.usage
        if value.get("usage") and usage is not None:
            value["usage"] = _stated(usage)
        choices: list[dict[str, Any]] = value.get("choices") or []
        if choices and not any([self._holds_news(choice) for choice in choices]):
            return b""
        return b"data: " + msgspec.json.encode(value) + _END_OF_EVENT

    def _holds_news(self, choice: dict[str, Any]) -> bool:
        """Takes out what the client has already; whether anything is left."""
        holder: dict[str, Any] = choice["delta"] if isinstance(choice.get("delta"), dict) else choice
        name = "text" if holder is choice else "content"
        holder.pop("role", None)
        text = self._new(holder.get(name) or "")
        if name in holder:
            holder[name] = text
        if self._rest.only_end and choice.get("finish_reason") is not None:
            # Its own reason is that of the one token more that it was asked for.
            choice["finish_reason"] = None if self._rest.said.finished else "length"
        more = any(value for key, value in holder.items() if key != name and holder is not choice)
        return bool(text or more or choice.get("finish_reason") is not None)

    def _new(self, text: str) -> str:
        if self._rest.only_end:
            return ""
        blank = self._blank
        if not blank or not text:
            return text
        if blank.startswith(text):
            self._blank = blank[len(text) :]
            return ""
        self._blank = ""
        if text.startswith(blank):
            return text[len(blank) :]
        # It says something else there: then both belong to the answer.
        self._carried += self._rest.said.blank_tokens
        return text


def _stated(usage: Usage) -> dict[str, Any]:
    completion = usage.completion_tokens or 0
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": usage.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class Resumable:
    """A request whose stream is kept (a Speaker), and how it goes on after a death."""

    __slots__ = ("_body", "_endpoint", "_kept", "_rest", "_speaker")

    def __init__(self, body: bytes, endpoint: str, speaker: Speaker | None, chunked: bool) -> None:
        self._body, self._endpoint, self._speaker = body, endpoint, speaker
        self._kept = Kept(chunked)
        self._rest: Rest | None = None

    def lane(self, *, usage_asked: bool, chunked: bool) -> KeepingLane:
        inner: Lane
        if self._rest is not None:
            inner = ResumedLane(usage_asked, chunked, self._rest)
        elif self._speaker is not None:
            inner = self._speaker.lane(usage_asked=usage_asked, chunked=chunked)
        else:
            inner = RawLane(usage_asked, chunked)
        return KeepingLane(inner, self._kept)

    def whole(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        raise BrokenStream("the engine answered a stream with a plain body")

    def go_on(self) -> bytes | None:
        """The body for another replica, whose lane comes next; None where nobody can go on from here."""
        said = said_in(self._kept.events()) if self._kept.is_whole else None
        rest = rest_of(self._body, self._endpoint, said) if said is not None else None
        if rest is None:
            return None
        self._rest = rest
        return rest.body


def resumable(
    call: AnyCall, endpoint: str, deployment: Deployment, body: bytes, speaker: Speaker | None, *, chunked: bool
) -> Resumable | None:
    """None where the deployment does not want it, or the request cannot be."""
    if deployment.policy.failover.on_broken_stream != "resume" or not can_be_resumed(call, endpoint, deployment):
        return None
    return Resumable(body, endpoint, speaker, chunked)

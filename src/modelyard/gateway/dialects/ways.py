"""Which way a request goes: to the endpoint itself, to another one that it can be made of, or nowhere."""

from __future__ import annotations

from modelyard.gateway.dialects.both_names import BothNamesSpeaker
from modelyard.gateway.dialects.checks import CheckingSpeaker, PlainSpeaker, expectation
from modelyard.gateway.dialects.dialect import CHAT, Sending, Speaker, Spoken, renamed
from modelyard.gateway.fields import Parsed, salt_of, upstream_body
from modelyard.gateway.refusals import Refusal
from modelyard.records.topology import Deployment

_BOTH_NAMES: dict[str, BothNamesSpeaker] = {
    "reasoning": BothNamesSpeaker("reasoning"),
    "reasoning_content": BothNamesSpeaker("reasoning_content"),
}
_AS_IT_COMES = PlainSpeaker()
_NO_NAMES: dict[str, str] = {}


def direct(parsed: Parsed, endpoint: str, deployment: Deployment) -> Sending:
    """A chat or completion request: nearly always nobody turns the answer back, its bytes travel as they came.
    Raises Refusal: 501 where the engine has no such endpoint, 400 for a field that it cannot have."""
    if endpoint not in deployment.endpoints:
        raise _not_served(endpoint, deployment)
    speaker: Speaker | None = _BOTH_NAMES.get(deployment.reasoning_field) if endpoint == CHAT else None
    expected = expectation(parsed.call)
    if expected is not None:
        speaker = CheckingSpeaker(speaker or _AS_IT_COMES, expected)
    return Sending(endpoint, upstream_body(parsed, deployment), speaker, _NO_NAMES)


def spoken(asked: Spoken, deployment: Deployment) -> Sending:
    """A request in a dialect. Raises Refusal: 501 where the engine has neither the endpoint nor what it could be made
    of, 400 for a field that it cannot have."""
    if asked.stripped and deployment.policy.unknown_fields == "refuse":
        name = min(asked.stripped)[:64]
        raise Refusal(400, f"unknown field {name!r}", code="unknown_parameter", param=name)
    native, parsed = asked.endpoint in deployment.endpoints, asked.parsed
    translated = asked.over != asked.endpoint and asked.over in deployment.endpoints
    if not native and not translated:
        raise _not_served(asked.endpoint, deployment)
    try:
        body = upstream_body(parsed, deployment)
    except Refusal as refusal:
        raise renamed(refusal, asked.names) from None
    # A field that the engine is not to have, or not as it came, is left out of the chat: the request goes that way.
    if native and not (translated and (parsed.stripped or parsed.bounded)):
        changes = {"model": deployment.engine_model}
        if asked.over == CHAT and deployment.cache_salt and deployment.policy.salted:
            changes["cache_salt"] = salt_of(parsed.key_id)
        if (most := parsed.fields.get("max_completion_tokens")) is not None:
            changes[asked.names["max_completion_tokens"]] = most
        return Sending(asked.endpoint, asked.native(changes), asked.native_speaker, _NO_NAMES)
    speaker, expected = asked.speaker, expectation(parsed.call)
    if speaker is not None and expected is not None:
        speaker = CheckingSpeaker(speaker, expected)
    return Sending(asked.over, body, speaker, asked.names)


def _not_served(endpoint: str, deployment: Deployment) -> Refusal:
    engine = f"{deployment.engine}, the engine behind {deployment.name!r}," if deployment.engine else "the engine"
    return Refusal(
        501,
        f"{engine} has no {endpoint}, and nothing that it could be made of; it has "
        f"{', '.join(sorted(deployment.endpoints))}: ask one of these, or a deployment whose engine has it",
        code="endpoint_not_served",
    )

"""What to do about a request that did not go well, in a sentence that a newcomer can act on."""

from __future__ import annotations

from modelyard.records.journal import Outcome, RequestRecord

_BY_CODE = {
    "invalid_api_key": "see which keys live: modelyard keys list",
    "missing_api_key": "send the key: Authorization: Bearer <key>",
    "key_scope": "make a key that reaches this deployment: modelyard keys create NAME --deployment ...",
    "model_not_found": "ask for a deployment that exists: modelyard status",
    "invalid_value": "the client's request holds a value out of bounds; its answer named the field",
    "invalid_json": "the client's body is not JSON as it should be; its answer named the place",
    "unknown_parameter": "the deployment refuses unknown fields (unknown_fields: refuse); its answer named the field",
    "body_too_large": "the body is beyond the limit: docs/reference/limits.md",
    "overloaded": "more requests wait than may: add replicas, raise limits.max_queued, or let the client come again",
    "unavailable": "no seat in time: add replicas, or raise limits.queue_timeout_s; what is open: modelyard status",
    "engine_unavailable": "see what the engine said: modelyard logs DEPLOYMENT, and whether it runs: modelyard status",
    "engine_error": "see what the engine said: modelyard logs DEPLOYMENT",
    "poison_request": "it ended its engine each time: see how, modelyard logs DEPLOYMENT, and change the request",
    "engine_refused": "the engine did not take this request; its answer to the client says why",
}
_BY_OUTCOME: dict[Outcome, str] = {
    "complete": "",
    "refused": "the client was told what is wrong with its request; it can be sent again once that is mended",
    "unavailable": "see whether the deployment is open: modelyard status",
    "client_gone": "nothing to do here: the client closed its connection; is its own timeout too short?",
    "upstream_failed": "see what the engine said: modelyard logs DEPLOYMENT, and whether it runs: modelyard status",
    "truncated": "the client got an error event and no end marker; see why the engine ended: modelyard logs DEPLOYMENT",
    "gateway_stopped": "the gateway was stopped or restarted with this request in flight; the client can send it again",
}


def advice(record: RequestRecord) -> str:
    """Empty where all went well. The deployment's name stands in commands where it is known."""
    if record.outcome == "complete":
        return ""
    text = _BY_CODE.get(record.error) or _BY_OUTCOME[record.outcome]
    return text.replace("DEPLOYMENT", record.deployment) if record.deployment else text

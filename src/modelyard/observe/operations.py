"""A request's record in the words of OpenTelemetry's conventions for generative AI."""

from __future__ import annotations

import re

from modelyard.records.journal import RequestRecord

# A custom value, as the convention allows: the engine behind a deployment may change, who serves it does not.
PROVIDER = "modelyard"
OTHER = "_OTHER"
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_CODE = re.compile(r"[a-z0-9_]{1,48}")
# What costs the client's own question nothing of an engine is no operation.
_LISTINGS = ("/v1/models", "/v1/models/", "/health", "/ready", "")


def operation(record: RequestRecord) -> str | None:
    """`gen_ai.operation.name`; None where the request was no operation of a model."""
    if record.endpoint in _LISTINGS:
        return None
    return _OPERATIONS.get(record.endpoint) or record.endpoint.rpartition("/")[2]


def error_type(record: RequestRecord) -> str:
    """`error.type`: the code that the client was told, or the outcome where it was told none; "" for a success."""
    if record.outcome == "complete":
        return ""
    return record.error if _CODE.fullmatch(record.error) else record.outcome

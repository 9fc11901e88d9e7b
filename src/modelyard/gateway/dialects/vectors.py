"""/v1/embeddings in OpenAI's shape and /v1/rerank in the one that Cohere, Jina and vLLM share."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from modelyard.gateway.dialects.bounds import Text, TokenId, read_call
from modelyard.gateway.dialects.dialect import EMBEDDINGS, RERANK, Spoken
from modelyard.gateway.dialects.plain import PlainCall, plain
from modelyard.gateway.limits import FIELDS
from modelyard.gateway.refusals import invalid
from modelyard.gateway.strict_json import Body

_Ids = Annotated[list[TokenId], Meta(min_length=1, max_length=FIELDS.max_tokens)]
_Inputs = Meta(min_length=1, max_length=FIELDS.inputs)


class EmbeddingsCall(PlainCall, kw_only=True, omit_defaults=True):
    input: Text | Annotated[list[Text | TokenId | _Ids], Meta(min_length=1, max_length=FIELDS.max_tokens)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    user: Annotated[str, Meta(max_length=256)] | None = None


class Document(Struct):
    text: Text


class RerankCall(PlainCall, kw_only=True, omit_defaults=True):
    query: Text
    documents: Annotated[list[Text | Document], _Inputs]
    top_n: Annotated[int, Meta(ge=1, le=FIELDS.inputs)] | None = None
    return_documents: bool | None = None


def read_embeddings(body: Body, request_id: str) -> Spoken:
    """Raises Refusal (400)."""
    call, unknown = read_call(body, EmbeddingsCall)
    if isinstance(call.input, list):
        ids = sum(isinstance(one, int) for one in call.input)
        if 0 < ids < len(call.input):
            raise invalid("input mixes token ids with texts: send one text, or a list of one kind", "input")
        if not ids and len(call.input) > FIELDS.inputs:
            raise invalid(f"input holds more than {FIELDS.inputs} texts", "input")
    return plain(EMBEDDINGS, call, unknown)


def read_rerank(body: Body, request_id: str) -> Spoken:
    """Raises Refusal (400)."""
    return plain(RERANK, *read_call(body, RerankCall))

"""Which endpoint is read by whom. Chat and completions are not here: they are what everything else is made of."""

from __future__ import annotations

from collections.abc import Callable

from modelyard.gateway.dialects.anthropic import read_count, read_messages
from modelyard.gateway.dialects.dialect import (
    COUNT_TOKENS,
    DETOKENIZE,
    EMBEDDINGS,
    MESSAGES,
    RERANK,
    RESPONSES,
    TOKENIZE,
    Spoken,
)
from modelyard.gateway.dialects.responses import read_responses
from modelyard.gateway.dialects.tokens import read_detokenize, read_tokenize
from modelyard.gateway.dialects.vectors import read_embeddings, read_rerank
from modelyard.gateway.strict_json import Body

Reader = Callable[[Body, str], Spoken]

READERS: dict[str, Reader] = {
    MESSAGES: read_messages,
    COUNT_TOKENS: read_count,
    RESPONSES: read_responses,
    EMBEDDINGS: read_embeddings,
    RERANK: read_rerank,
    TOKENIZE: read_tokenize,
    DETOKENIZE: read_detokenize,
}

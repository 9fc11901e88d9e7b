"""Embeddings and ranks as a FakeEngine makes them: of words, alike where words are shared. Standard library only."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

from http1 import BadRequest
from modelyard.testing.fake_answers import is_list

DIMENSIONS = 16


def embeddings(fields: dict[str, Any]) -> dict[str, object]:
    """The answer to a request in OpenAI's shape. Raises BadRequest."""
    wanted = fields.get("input")
    inputs: list[Any] = wanted if is_list(wanted) else [wanted]
    if not inputs or not all(isinstance(text, str) for text in inputs):
        raise BadRequest("'input' is a text or a list of texts", param="input")
    vectors = [_vector(text, fields.get("dimensions") or DIMENSIONS) for text in inputs]
    told: list[object] = (
        [_packed(one) for one in vectors] if fields.get("encoding_format") == "base64" else list(vectors)
    )
    data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(told)]
    return {"object": "list", "model": fields["model"], "data": data, "usage": _usage(inputs)}


def rerank(fields: dict[str, Any]) -> dict[str, object]:
    """The answer to a request in the shape of Cohere's and Jina's. Raises BadRequest."""
    query, documents = fields.get("query"), fields.get("documents")
    if not isinstance(query, str) or not is_list(documents):
        raise BadRequest("'query' is a text, 'documents' a list", param="documents")
    texts: list[str] = [one if isinstance(one, str) else one["text"] for one in documents]
    asked = set(query.split())
    scores = [len(asked & set(text.split())) / max(1, len(asked)) for text in texts]
    order = sorted(range(len(texts)), key=lambda at: -scores[at])[: fields.get("top_n") or len(texts)]
    results = [{"index": at, "relevance_score": scores[at], "document": {"text": texts[at]}} for at in order]
    return {"id": "rerank-1", "model": fields["model"], "results": results, "usage": _usage([query, *texts])}


def _vector(text: str, dimensions: int) -> list[float]:
    vector = [0.0] * dimensions
    for word in text.split():
        vector[zlib.crc32(word.encode()) % dimensions] += 1.0
    length = sum(one * one for one in vector) ** 0.5
    return [one / length for one in vector] if length else vector


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _usage(texts: list[str]) -> dict[str, int]:
    tokens = sum(len(text.split()) for text in texts)
    return {"prompt_tokens": tokens, "total_tokens": tokens}

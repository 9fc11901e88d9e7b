"""One request of a debug window, with what its client sent and was sent. The only record that holds either."""

from __future__ import annotations

from modelyard.records.base import Record


class Overheard(Record, tag_field="schema", tag="overheard/v1", kw_only=True):
    """`prompt` is the request's body, `answer` what the client was sent, heads and framing included. `cut` where either
    was longer than is kept, or the window closed in the middle."""

    request_id: str
    at: float
    deployment: str
    key_id: str
    endpoint: str
    prompt: str
    answer: str
    cut: bool = False

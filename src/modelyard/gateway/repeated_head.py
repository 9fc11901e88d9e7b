"""Heads that come again. On a kept-alive connection both sides repeat themselves, all but the number in Content-Length;
bytes that are the same mean the same, so what was parsed once need not be parsed again."""

from __future__ import annotations

_NAME = b"\r\ncontent-length: "
_MOST_DIGITS = 12


class RepeatedHead:
    """A head, split around the digits of its Content-Length."""

    __slots__ = ("_after", "_before", "_digits_at")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before, self._after, self._digits_at = before, after, len(before)

    @classmethod
    def of(cls, data: bytes) -> RepeatedHead | None:
        """The head that `data` begins with; None where its length or the ends of its lines are written unusually."""
        head = data[: data.find(b"\r\n\r\n") + 4]
        lowered = head.lower()
        if lowered.count(_NAME) != 1 or head.count(b"\n") != head.count(b"\r\n"):
            return None
        start = lowered.find(_NAME) + len(_NAME)
        end = head.find(b"\r", start)
        return cls(head[:start], head[end:]) if head[start:end].isdigit() else None

    def body(self, data: bytes) -> bytes | None:
        """The body in `data` where it is this head again with a whole body behind it and nothing more, else None."""
        start = self._digits_at
        if not data.startswith(self._before):
            return None
        end = data.find(b"\r", start, start + _MOST_DIGITS)
        if end < 0 or not data.startswith(self._after, end):
            return None
        digits = data[start:end]
        body_at = end + len(self._after)
        if not digits.isdigit() or int(digits) != len(data) - body_at:
            return None
        return data[body_at:]

"""From tokens to text that may be shown: whole characters only, and never a part of a stop string."""

from __future__ import annotations

_WINDOW_TOKENS = 32
_ANCHOR_TOKENS = 8  # a character has at most 4 bytes, so it never begins before the last 4 tokens


class TextTail:
    """Turns one sequence's tokens into text deltas by decoding a short window of its last tokens.

    Decoding token by token would lose what only neighbours decide: characters split over tokens, and the space that
    many detokenisers strip at the beginning of a text. The window keeps a few shown tokens as context, so the deltas
    joined equal the text decoded at once.
    """

    def __init__(self) -> None:
        self._window: list[int] = []
        self._shown = ""

    def window(self, new_tokens: list[int]) -> list[int]:
        """Append tokens; returns what must be decoded and handed to `advance`."""
        self._window += new_tokens
        return self._window

    def advance(self, decoded: str, *, last: bool = False) -> str:
        """The text that `decoded` adds. An unfinished character is held back until complete, or until the `last` call.

        OpenVINO's detokeniser drops the bytes of an unfinished character, others write U+FFFD for them: both ways
        nothing of it is shown early.
        """
        complete = decoded if last else decoded.rstrip("\ufffd")
        delta = complete[len(self._shown) :]
        self._shown += delta
        return delta

    def anchor(self) -> list[int] | None:
        """The shorter window to decode and hand to `shorten`, once this one has grown long."""
        return self._window[-_ANCHOR_TOKENS:] if len(self._window) > _WINDOW_TOKENS else None

    def shorten(self, decoded: str) -> None:
        complete = decoded.rstrip("\ufffd")
        if self._shown.endswith(complete):
            self._window = self._window[-_ANCHOR_TOKENS:]
            self._shown = complete


class StopFilter:
    """Withholds text that may be the beginning of a stop string, and ends the text where one is complete."""

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown now, whether a stop string was met: then nothing follows)."""
        if not self._stops:
            return text, False
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            return self._held[: min(found)], True
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """What was held back, once it is known that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

"""After how long the first token of an answer comes from an engine that is not pressed.

It depends on what has to be read before: the tokens of a prompt that the prefix cache does not hold. So what is
expected is kept by the size of that, in classes that double; within one, prompts differ by up to two, which whoever
compares has to allow for.

What is kept is near the least that was seen: a first token that came sooner shows what the engine can do, whatever else
it did meanwhile. Upwards it only goes by requests that were never in a crowd, for an engine that has become slower
shows that to them too; the later ones of a crowd only show the crowd. (Envoy measures its `minRTT` anew by letting next
to nothing through for a while; seats that stay free because nobody asks, and the floor of a limit, do that here.)"""

from __future__ import annotations

# Of the way to a sample, towards less and towards more. An engine that tells nothing of its prefix cache makes some
# prompts look much too quick: these two, five to one, keep what is expected between those and the others.
DOWN = 0.1
UP = 0.02
CLASSES = 24


class FirstTokens:
    """By class of fresh prompt tokens, seconds; 0 where nothing was seen."""

    __slots__ = ("_expected_s",)

    def __init__(self) -> None:
        self._expected_s = [0.0] * CLASSES

    def expected_s(self, fresh_tokens: int) -> float:
        """0 where nothing is known at all. Of a class that was never seen it is the least that follows from others: a
        shorter prompt takes no longer, one of twice the length about twice as long."""
        own = _class_of(fresh_tokens)
        if known := self._expected_s[own]:
            return known
        bounds = [seconds * 2.0 ** max(0, own - other) for other, seconds in enumerate(self._expected_s) if seconds]
        return min(bounds, default=0.0)

    def learn(self, fresh_tokens: int, first_s: float, most_s: float, *, is_calm: bool) -> None:
        """A first token came after `first_s`; more than `most_s` counts as that, for one that hung is no measure."""
        own = _class_of(fresh_tokens)
        known = self._expected_s[own]
        if not known:
            self._expected_s[own] = first_s
        elif first_s < known:
            self._expected_s[own] += DOWN * (first_s - known)
        elif is_calm:
            self._expected_s[own] += UP * (min(first_s, max(most_s, known)) - known)


def _class_of(fresh_tokens: int) -> int:
    return min(max(0, fresh_tokens).bit_length(), CLASSES - 1)

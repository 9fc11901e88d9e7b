"""A mirror of the engine's prefix cache: how many tokens of a prompt it will restore instead of computing.

OpenVINO GenAI tells nobody how much of a prompt came from its cache, so usage numbers are derived: the engine keys
each 32-token KV block by the hash of everything before and in it, restores the longest known chain when a request
is added, and then at most one partly filled block behind it. The mirror repeats that over the same contents.

How exact: equal to the engine while the pool has never wrapped (checked against the real skip by the acceptance
tests). Once blocks are being overwritten the engine picks the one least recently restored, and the mirror follows
that order without knowing about duplicate blocks, so it can be off by the blocks of the last few evictions. Nothing
but `usage.prompt_tokens_details.cached_tokens` and the choice of prefill pieces depends on it.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from hashlib import blake2b

BLOCK_TOKENS = 32

Digest = bytes


def chain(tokens: list[int], count: int | None = None) -> list[Digest]:
    """Digests of the full blocks of `tokens[:count]`, each over its whole prefix."""
    digests: list[Digest] = []
    end = len(tokens) if count is None else count
    for start in range(0, end - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        digests.append(_digest(digests[-1] if digests else b"", tokens[start : start + BLOCK_TOKENS]))
    return digests


def _digest(previous: Digest, tokens: list[int]) -> Digest:
    return blake2b(previous + array("q", tokens).tobytes(), digest_size=16).digest()


class PrefixMirror:
    def __init__(self, pool_blocks: int) -> None:
        self._pool_blocks = pool_blocks
        # Blocks never restored keep the age of the pool itself and go first; restored or overwritten ones follow.
        self._untouched: OrderedDict[Digest, None] = OrderedDict()
        self._touched: OrderedDict[Digest, None] = OrderedDict()
        self._live: Counter[Digest] = Counter()
        self._wrapped = False

    def restorable(self, prompt: list[int]) -> int:
        """Prompt tokens whose KV would be restored now, in full blocks plus one partly filled block."""
        digests = chain(prompt)
        known = next((index for index, digest in enumerate(digests) if not self._has(digest)), len(digests))
        tokens = known * BLOCK_TOKENS
        rest = prompt[tokens : tokens + BLOCK_TOKENS]
        previous = digests[known - 1] if known else b""
        whole = [len(rest)] if 0 < len(rest) < BLOCK_TOKENS else []
        for length in (*whole, *range(1, len(rest))):
            if self._has(_digest(previous, rest[:length])):
                return tokens + length
        return tokens

    def hold(self, digests: list[Digest]) -> None:
        """A running sequence now owns these blocks: restored ones become recent, new ones are taken from the pool."""
        for digest in digests:
            self._live[digest] += 1
            if digest in self._untouched:
                del self._untouched[digest]
                self._touched[digest] = None
            elif digest in self._touched:
                self._touched.move_to_end(digest)
            else:
                self._take(digest)

    def release(self, digests: list[Digest], tail_of: Digest, tail: list[int]) -> None:
        """A sequence ended: its full blocks stay restorable, and so does the partly filled one behind them."""
        self._live.subtract(digests)
        self._live += Counter()
        if tail:
            self._take(_digest(tail_of, tail))

    def drop_tail(self, prompt: list[int], restored: int) -> None:
        """A restored partly filled block is filled further by its new owner and is no longer what it was."""
        full = restored // BLOCK_TOKENS * BLOCK_TOKENS
        if restored > full:
            digests = chain(prompt, full)
            digest = _digest(digests[-1] if digests else b"", prompt[full:restored])
            self._untouched.pop(digest, None)
            self._touched.pop(digest, None)

    def _has(self, digest: Digest) -> bool:
        return digest in self._untouched or digest in self._touched

    def _take(self, digest: Digest) -> None:
        if self._has(digest):
            return
        if len(self._untouched) + len(self._touched) >= self._pool_blocks:
            self._wrapped = True
            self._evict()
        (self._touched if self._wrapped else self._untouched)[digest] = None

    def _evict(self) -> None:
        for blocks in (self._untouched, self._touched):
            for digest in blocks:
                if not self._live[digest]:
                    del blocks[digest]
                    return

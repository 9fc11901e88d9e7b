"""Memory bandwidth, over all our cores at once, with nothing but the C library.

Reading: `memchr` for a byte that is not there touches every byte once and writes none, with the widest loads that the
library knows. Copying: `memcpy`. Both run outside the interpreter's lock. Each thread stays on one processor and works
in memory that it was the first to write, so that on several NUMA nodes every byte is near."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

_LEAST_BYTES = 256 << 20
_BEYOND_CACHE = 4
# A round moves at least this much with each thread: some 10 ms, against which starting threads is nothing, and short
# enough that on a busy machine some rounds are left alone.
_LEAST_PER_THREAD_BYTES = 64 << 20
_PATTERN, _ABSENT = 0x55, 0xAA


@dataclass(frozen=True, slots=True)
class MemoryRounds:
    """Bytes per second of each round; a copied byte counts twice, once read and once written."""

    buffer_bytes: int
    read: tuple[float, ...]
    copy: tuple[float, ...]


def buffer_size(last_level_cache_bytes: int, available_bytes: int) -> int:
    """Far beyond the last cache, and never more than a quarter of what is free."""
    return min(max(_LEAST_BYTES, _BEYOND_CACHE * last_level_cache_bytes), available_bytes // 4)


def measure(cpus: Sequence[int], buffer_bytes: int, rounds: int = 15) -> MemoryRounds:
    """One thread for each of `cpus`; the first round of each kind warms up and does not count."""
    each = buffer_bytes // max(1, len(cpus)) // mmap.PAGESIZE * mmap.PAGESIZE
    passes = max(1, _LEAST_PER_THREAD_BYTES // each)
    barrier = threading.Barrier(len(cpus))

    def work(cpu: int) -> list[tuple[float, float]]:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {cpu})
        try:
            with mmap.mmap(-1, each) as memory:
                return _timed(memory, each, passes, rounds, barrier)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(len(cpus)) as pool:
        spans = list(pool.map(work, cpus))
    moved = len(cpus) * passes * each
    rates = [moved / _wall_s(threads) for threads in zip(*spans, strict=True)]
    return MemoryRounds(each * len(cpus), tuple(rates[1 : rounds + 1]), tuple(rates[rounds + 2 :]))


def _wall_s(threads: Iterable[tuple[float, float]]) -> float:
    """From the first start to the last end."""
    starts, ends = zip(*threads, strict=True)
    return max(ends) - min(starts)


def _timed(
    memory: mmap.mmap, size: int, passes: int, rounds: int, barrier: threading.Barrier
) -> list[tuple[float, float]]:
    libc = ctypes.CDLL(None)
    libc.memchr.restype = ctypes.c_void_p
    held = ctypes.c_char.from_buffer(memory)
    start, half = ctypes.addressof(held), size // 2
    ctypes.memset(start, _PATTERN, size)

    def read() -> None:
        libc.memchr(ctypes.c_void_p(start), _ABSENT, ctypes.c_size_t(size))

    def copy() -> None:
        libc.memcpy(ctypes.c_void_p(start), ctypes.c_void_p(start + half), ctypes.c_size_t(half))

    spans: list[tuple[float, float]] = []
    kinds: tuple[Callable[[], None], ...] = (read, copy)
    for operation in kinds:
        for _ in range(rounds + 1):
            barrier.wait()
            began = time.perf_counter()
            for _ in range(passes):
                operation()
            spans.append((began, time.perf_counter()))
    # The map cannot be closed while something points into it.
    del held
    return spans

"""How fast this machine reads memory: what decoding a token cannot go beyond, since it reads all weights."""

from __future__ import annotations

import time

BYTES = 512 * 2**20
RUNS = 12


def gigabytes_per_s(threads: int) -> float:
    """The best of some runs over an array that no cache holds, in 10^9 bytes a second, with so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        values = torch.ones(BYTES // 4)
        best = float("inf")
        for _ in range(RUNS):
            begun = time.perf_counter()
            values.sum()
            best = min(best, time.perf_counter() - begun)
    finally:
        torch.set_num_threads(before)
    return BYTES / best / 1e9

"""How sure a figure over texts is: percentile intervals of the bootstrap (Efron & Tibshirani, 1993, chapter 13).

A figure is a function of sums over texts: a mean is the sum of the texts' values over their number, corpus BLEU a
function of summed n-gram counts. Texts are drawn anew with replacement, many times; the interval holds the middle
share of the figures that come of it. All figures of one call see the same draws, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

RESAMPLES = 1000
CONFIDENCE = 0.95
_DRAWS_AT_ONCE = 1 << 20  # 8 MB of counts
_DRAWS_KEPT = 1 << 21  # for the figures that follow; 16 MB of counts


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A figure with the bounds of its confidence interval.

    Attributes:
        value: over all texts.
        low, high: bounds; ``value`` itself where there is one text.
        unit: what the number counts: ``share`` (0 to 1), ``points`` (0 to 100), ``ratio``, ``words``.
        meaning: one sentence for people, with which direction is better.
    """

    value: float
    low: float
    high: float
    unit: str
    meaning: str


def bootstrap_interval(
    rows: NDArray[np.float64],
    figure: Callable[[NDArray[np.float64]], float | None],
    *,
    unit: str,
    meaning: str,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval | None:
    """A figure over texts and its interval, or None where the figure has no value over them (0 of 0).

    Args:
        rows: float64 ``[texts, K]``: what each text adds.
        figure: from sums ``[K]`` over texts; None where it has no value. Such draws are left out.
        unit: see :class:`Interval`.
        meaning: see :class:`Interval`.
        resamples: how often texts are drawn anew.
        confidence: share of the draws between the bounds.
        seed: of the draws.

    Raises:
        UsageError: no resamples, or a confidence that is no share.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise UsageError(
            f"{resamples} resamples at a confidence of {confidence}: give at least 1, and a share between 0 and 1"
        )
    texts = len(rows)
    value = figure(rows.sum(axis=0)) if texts else None
    if value is None:
        return None
    drawn: list[float] = []
    for counts in _draws(texts, resamples, seed):
        drawn += [found for sums in counts @ rows if (found := figure(sums)) is not None]
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail)) if drawn else (value, value)
    # rounding alone must not put a figure outside its own interval where all draws are alike
    low, high = min(float(low), value), max(float(high), value)
    return Interval(value=value, low=low, high=high, unit=unit, meaning=meaning)


def _draws(texts: int, resamples: int, seed: int) -> Iterable[NDArray[np.int64]]:
    """How often each draw has each text: arrays ``[some draws, texts]``, alike for the same arguments."""
    if texts * resamples <= _DRAWS_KEPT:
        return _kept_draws(texts, resamples, seed)
    return _new_draws(texts, resamples, seed)


@lru_cache(maxsize=1)
def _kept_draws(texts: int, resamples: int, seed: int) -> tuple[NDArray[np.int64], ...]:
    return tuple(_new_draws(texts, resamples, seed))


def _new_draws(texts: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // texts)
    for begin in range(0, resamples, at_once):
        yield generator.multinomial(texts, np.full(texts, 1 / texts), size=min(at_once, resamples - begin))


def ratio(sums: NDArray[np.float64]) -> float | None:
    """The first sum over the second: a mean, or a share; None where the second is zero."""
    return float(sums[0] / sums[1]) if sums[1] else None

"""Choosing the next token from logits: greedy, or drawn at a temperature from what top-k, top-p and min-p leave.

The filters stand in the order of transformers: repetition penalty (Keskar et al., "CTRL", 2019), temperature, top-k
(Fan et al., 2018), top-p (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020), min-p (Nguyen et
al., 2024). A decode step takes a few milliseconds, so no filter sorts the whole vocabulary: each first leaves out, by
a bound that cannot be wrong, what cannot be among the kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, WrongAnswerError

_BLOCKS = 512
_LIKELY_ENOUGH = 256
_ROW = 256


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: draw among the k likeliest; 0 among all.
        top_p: draw among the likeliest that together have this probability; 1 among all.
        min_p: leave out what is less likely than this share of the likeliest's probability.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens that are in the prompt or
            were written already; 1 changes nothing.
        seed: of the random numbers; None takes another one each time, which the result tells.

    Raises:
        UsageError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0 <= _number(self.temperature) <= 100, "a number from 0 to 100")
        _check("top_p", self.top_p, 0 < _number(self.top_p) <= 1, "a number over 0 and up to 1")
        _check("min_p", self.min_p, 0 <= _number(self.min_p) <= 1, "a number from 0 to 1")
        penalty = _number(self.repetition_penalty)
        _check("repetition_penalty", self.repetition_penalty, 0.01 <= penalty <= 100, "a number from 0.01 to 100")
        _check("top_k", self.top_k, _is_whole(self.top_k) and self.top_k >= 0, "a whole number, 0 for all")
        _check("seed", self.seed, self.seed is None or (_is_whole(self.seed) and self.seed >= 0), "a whole number")


class Sampler:
    """Chooses one text's tokens, one random number for each that is drawn.

    Args:
        sampling: how.
        vocabulary: number of tokens V.
        prompt: tokens that a repetition penalty counts as written already.
    """

    def __init__(self, sampling: Sampling, vocabulary: int, prompt: Iterable[int] = ()) -> None:
        self._sampling = sampling
        self.seed = sampling.seed
        if self.seed is None and sampling.temperature > 0:
            self.seed = int(np.random.SeedSequence().entropy) & (2**63 - 1)  # type: ignore[arg-type]
        self._random = np.random.default_rng(self.seed) if sampling.temperature > 0 else None
        self._penalises = sampling.repetition_penalty != 1
        if self._penalises:
            self._is_written = np.zeros(vocabulary, bool)
            self._written = np.zeros(vocabulary, np.int64)
            self._count = 0
            for token in prompt:
                self._note(token)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token. ``logits`` float32 ``[V]`` may be changed; a token at minus infinity is never chosen.

        Raises:
            WrongAnswerError: no logit is a finite number, or one is not a number.
        """
        if self._penalises:
            self._penalise(logits)
        best = int(logits.argmax())
        highest = logits[best]
        if not math.isfinite(highest):  # what is not a number counts as the largest
            raise WrongAnswerError(
                f"the engine gave the logit {highest} for token {best}, from which no token can be chosen; load "
                "another runtime or precision of the bundle"
            )
        token = best if self._random is None else self._draw(logits, highest)
        if self._penalises:
            self._note(token)
        return token

    def _draw(self, logits: NDArray[np.float32], highest: np.float32) -> int:
        sampling = self._sampling
        assert self._random is not None
        number = self._random.random()
        tokens: NDArray[np.intp] | None = None
        if 0 < sampling.top_k < len(logits):
            tokens = top_tokens(logits, sampling.top_k)
            logits = logits[tokens]
        # In place: arrays of a whole vocabulary are so large that new memory is asked of the system for each.
        weights = logits
        with np.errstate(over="ignore", under="ignore"):
            weights -= highest
            weights /= np.float32(max(sampling.temperature, 1e-30))
            np.exp(weights, out=weights)
        if sampling.top_p < 1:
            kept = nucleus(weights, sampling.top_p)
            weights, tokens = weights[kept], kept if tokens is None else tokens[kept]
        if sampling.min_p > 0:
            kept = np.flatnonzero(weights >= np.float32(sampling.min_p))  # the likeliest has weight 1
            weights, tokens = weights[kept], kept if tokens is None else tokens[kept]
        place = place_of(weights, number)
        return place if tokens is None else int(tokens[place])

    def _penalise(self, logits: NDArray[np.float32]) -> None:
        written = self._written[: self._count]
        found = logits[written]
        penalty = np.float32(self._sampling.repetition_penalty)
        logits[written] = np.where(found > 0, found / penalty, found * penalty)

    def _note(self, token: int) -> None:
        if not self._is_written[token]:
            self._is_written[token] = True
            self._written[self._count] = token
            self._count += 1


def top_tokens(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """The ``k`` tokens of the highest logits, best first; of equal ones, those of lower number.

    The k-th highest of the maxima of blocks is a lower bound of the k-th highest of all. A block is every 512th token,
    so that maxima are taken row by row of memory.
    """
    width = len(logits) // _BLOCKS
    tokens: NDArray[np.intp] | None = None
    if width > 1 and k <= _BLOCKS // 2:
        maxima = logits[: width * _BLOCKS].reshape(width, _BLOCKS).max(axis=0)
        tokens = np.flatnonzero(logits >= np.partition(maxima, _BLOCKS - k)[_BLOCKS - k])
    elif k < len(logits):
        tokens = np.flatnonzero(logits >= np.partition(logits, len(logits) - k)[len(logits) - k])
    found = logits if tokens is None else logits[tokens]
    order = np.argsort(-found, kind="stable")[:k]
    return order if tokens is None else tokens[order]


def nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.intp]:
    """The places of the highest weights that together reach ``top_p`` of all, best first; at least one.

    What weighs less than an n-th of the rest, ``1 - top_p``, cannot be among them: all of it together is not the rest.
    """
    total = float(weights.sum(dtype=np.float64))
    if len(weights) > _LIKELY_ENOUGH * 8:
        likely = top_tokens(weights, _LIKELY_ENOUGH)
        sums = np.cumsum(weights[likely], dtype=np.float64)
        if sums[-1] >= top_p * total:
            return likely[: int(np.searchsorted(sums, top_p * total)) + 1]
    places = np.flatnonzero(weights >= np.float32((1 - top_p) * total / len(weights) * 0.999))
    order = places[np.argsort(-weights[places], kind="stable")]
    sums = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(sums, top_p * total)) + 1]


def place_of(weights: NDArray[np.float32], number: float) -> int:
    """The place at which the sum of weights passes ``number``, in [0, 1), of the whole; never one of weight 0.

    Summed in float64, by rows first: a running sum of a whole vocabulary takes ten times as long.
    """
    rows = len(weights) // _ROW
    start, before = 0, 0.0
    if rows > 1:
        whole = weights[: rows * _ROW].reshape(rows, _ROW).sum(axis=1, dtype=np.float64)
        sums = np.cumsum(np.append(whole, weights[rows * _ROW :].sum(dtype=np.float64)))
        target = number * sums[-1]
        row = _first_over(sums, target)
        start, before = row * _ROW, float(sums[row - 1]) if row else 0.0
        sums = np.cumsum(weights[start : start + _ROW], dtype=np.float64)
    else:
        sums = np.cumsum(weights, dtype=np.float64)
        target = number * sums[-1]
    return start + _first_over(sums, target - before)


def _first_over(sums: NDArray[np.float64], target: float) -> int:
    """The first place whose sum is over ``target``; where rounding left none, the last that adds to the sum."""
    place = int(np.searchsorted(sums, target, side="right"))
    return place if place < len(sums) else int(np.searchsorted(sums, sums[-1]))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(name: str, value: object, good: bool, wanted: str) -> None:
    if not good:
        raise UsageError(f"{name} is {value!r}; give {wanted}")

"""Padding that a session adds because its engine wants few token counts, and takes off again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import TensorSpec


@dataclass(frozen=True)
class TokenPadding:
    """``tokens`` token columns (the second axis) brought to ``padded``, with zeros on the left or right.

    A zero in the mask leaves the new columns out; whatever id stands there is not looked at.
    """

    tokens: int
    padded: int
    left: bool

    def add(self, array: NDArray[np.int32]) -> NDArray[np.int32]:
        """``[batch, tokens]`` → ``[batch, padded]``."""
        extra = self.padded - self.tokens
        return np.pad(array, ((0, 0), (extra, 0) if self.left else (0, extra))) if extra else array

    def remove(self, array: NDArray[Any]) -> NDArray[Any]:
        """``[batch, padded, …]`` → ``[batch, tokens, …]``."""
        return array[:, self.padded - self.tokens :] if self.left else array[:, : self.tokens]


def token_outputs(outputs: tuple[TensorSpec, ...]) -> frozenset[str]:
    """Names of the outputs that have a token axis: three axes or more, the second one free."""
    return frozenset(spec.name for spec in outputs if len(spec.shape) > 2 and spec.shape[1] is None)


def rounded_tokens(tokens: int, most: int) -> int:
    """The next of few token counts: 16, or a multiple of 32; not over ``most``."""
    rounded = 16 if tokens <= 16 else -(-tokens // 32) * 32
    return max(tokens, min(rounded, most))

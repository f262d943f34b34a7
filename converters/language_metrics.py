"""How well a writer foresees text: cross-entropy, perplexity, next-token accuracy, agreement with a reference.

Each text is a sequence of tokens of its own; every token but the first is foreseen from those before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from ..errors import DataError
from .torch_graph import TorchGraph


class WritingMetrics(msgspec.Struct, frozen=True, kw_only=True, tag="writing", tag_field="kind"):
    """How well tokens were foreseen.

    Attributes:
        examples: tokens foreseen.
        cross_entropy: mean negative log-likelihood of a token, in nats.
        perplexity: its exponential.
        accuracy: share of tokens that were the likeliest.
        agreement: share of tokens whose likeliest guess is the reference's (the teacher's in float32), or None.
        characters: characters that the tokens stand for, so that students of other vocabularies can be compared.
        bits_per_character: all tokens' negative log-likelihood in bits over ``characters``.
    """

    examples: int
    cross_entropy: float
    perplexity: float
    accuracy: float
    agreement: float | None
    characters: int
    bits_per_character: float

    @property
    def score(self) -> float:
        """The task's own metric: next-token accuracy."""
        return self.accuracy

    def values(self) -> dict[str, float]:
        """The figures by name, as the manifest's ``quality`` keeps them."""
        named = {
            "cross_entropy": self.cross_entropy,
            "perplexity": self.perplexity,
            "accuracy": self.accuracy,
            "agreement": self.agreement,
            "bits_per_character": self.bits_per_character,
        }
        return {name: value for name, value in named.items() if value is not None}


def writing_metrics(
    losses: Sequence[NDArray[np.float32]],
    guesses: Sequence[NDArray[np.int64]],
    tokens: Sequence[NDArray[np.int32]],
    texts: Sequence[str],
    reference: Sequence[NDArray[np.int64]] = (),
) -> WritingMetrics:
    """Metrics over texts.

    Args:
        losses: of each text, the negative log-likelihood in nats of its tokens from the second on ``[T - 1]``.
        guesses: the likeliest tokens at the same places ``[T - 1]``.
        tokens: the texts' tokens ``[T]``.
        texts: what they stand for.
        reference: a reference's ``guesses``, where tokens are the same.

    Raises:
        DataError: no text has two tokens.
    """
    every = np.concatenate([np.zeros(0, np.float32), *losses]).astype(np.float64)
    if every.size == 0:
        raise DataError("there is nothing to evaluate on: no text has two tokens")
    hits = [guess == ids[1:] for guess, ids in zip(guesses, tokens, strict=True)]
    same = [ours == theirs for ours, theirs in zip(guesses, reference, strict=True)] if reference else []
    mean = float(every.mean())
    characters = max(1, sum(map(len, texts)))
    return WritingMetrics(
        examples=int(every.size),
        cross_entropy=mean,
        perplexity=math.exp(min(mean, 700.0)),
        accuracy=float(np.concatenate(hits).mean()),
        agreement=float(np.concatenate(same).mean()) if same else None,
        characters=characters,
        bits_per_character=float(every.sum() / math.log(2) / characters),
    )


def foresee(
    graph: TorchGraph, tokens: Sequence[NDArray[np.int32]], on_progress: Callable[[float], None] | None = None
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.int64]]]:
    """Losses and guesses of a student in torch for texts of one token at least: each ``[T - 1]``, in their order."""
    graph.eval()
    losses, guesses = [], []
    for number, ids in enumerate(tokens):
        with torch.no_grad():
            row = torch.from_numpy(ids.astype(np.int64))[None]
            logits = graph.run({"input_ids": row})["logits"][0, :-1].float()
        losses.append(functional.cross_entropy(logits, row[0, 1:], reduction="none").numpy())
        guesses.append(logits.argmax(-1).numpy())
        if on_progress is not None:
            on_progress((number + 1) / len(tokens))
    return losses, guesses

"""How well a writer foresees text: cross-entropy, perplexity, next-token accuracy, agreement with a reference.

Each text is a sequence of tokens of its own; every token but the first is foreseen from those before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from ..errors import DataError
from .metrics import WritingMetrics
from .torch_graph import TorchGraph

TOKENS_AT_ONCE = 1024
"""Tokens run together in torch: the logits of a vocabulary of 49,152 take 200 MB."""


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
    """Losses and guesses of a student in torch for texts of two tokens at least: each ``[T - 1]``, in their order.

    Texts of like lengths are run together, so that weights are rounded once for all of them.
    """
    graph.eval()
    losses: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(tokens)
    guesses: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(tokens)
    done = 0
    for batch in _batches([len(ids) for ids in tokens]):
        width = max(len(tokens[number]) for number in batch)
        rows = torch.zeros((len(batch), width), dtype=torch.long)
        for place, number in enumerate(batch):
            rows[place, : len(tokens[number])] = torch.from_numpy(tokens[number].astype(np.int64))
        with torch.no_grad():
            logits = graph.run({"input_ids": rows, "attention_mask": torch.ones_like(rows)})["logits"][:, :-1].float()
            every = functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").numpy()
        best = logits.argmax(-1).numpy()
        for place, number in enumerate(batch):
            count = len(tokens[number]) - 1
            losses[number], guesses[number] = every[place, :count].copy(), best[place, :count].copy()
        done += len(batch)
        if on_progress is not None:
            on_progress(done / len(tokens))
    return losses, guesses


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of texts of like lengths, so many together that padding and all they have 1,024 tokens at most."""
    batches: list[list[int]] = [[]]
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[number] > TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(number)
    return [batch for batch in batches if batch]

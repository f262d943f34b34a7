"""How good a summariser is: its greedy summaries against references, and how well it foresees these, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from ..errors import DataError
from .distillation import UNLABELLED
from .metrics import SummaryMetrics
from .text_metrics import score_texts
from .torch_graph import TorchGraph
from .training_data import Example, collate

TOKENS_AT_ONCE = 4096
"""Tokens of sources and summaries, padding included, that are run together in torch."""

TARGETS_AT_ONCE = 1024
"""Tokens of summaries that are run together: the logits of a vocabulary of 32,128 take 130 MB."""


@dataclass(frozen=True)
class Written:
    """What a student came to on the same texts, in their order.

    ``summaries``: greedy ones; ``losses`` float32 ``[t]``: negative log-likelihood in nats of each reference's tokens
    (from the first that is not forced, its end included); ``guesses`` int64 ``[t]``: the likeliest tokens there.
    """

    summaries: list[str]
    losses: list[NDArray[np.float32]]
    guesses: list[NDArray[np.int64]]


def summary_metrics(
    written: Written,
    references: Sequence[str],
    sources: Sequence[str],
    examples: Sequence[Example],
    unpruned: Sequence[str] = (),
) -> SummaryMetrics:
    """Metrics over texts.

    Args:
        examples: the references' tokens, made for the student that wrote.
        unpruned: what the unpruned student wrote in float32, for ``agreement``.

    Raises:
        DataError: there are no texts.
    """
    every = np.concatenate([np.zeros(0, np.float32), *written.losses]).astype(np.float64)
    if every.size == 0:
        raise DataError("there is nothing to evaluate on: the data has no usable rows")
    hits = [
        guess == example.labels[example.labels != UNLABELLED]
        for guess, example in zip(written.guesses, examples, strict=True)
    ]
    mean = float(every.mean())
    same = [ours == theirs for ours, theirs in zip(written.summaries, unpruned, strict=True)] if unpruned else []
    return SummaryMetrics(
        examples=len(references),
        scores=score_texts(written.summaries, references, sources),
        cross_entropy=mean,
        perplexity=math.exp(min(mean, 700.0)),
        token_accuracy=float(np.concatenate(hits).mean()),
        agreement=float(np.mean(same)) if same else None,
    )


def foresee_summaries(
    graph: TorchGraph, examples: Sequence[Example], on_progress: Callable[[float], None] | None = None
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.int64]]]:
    """Losses and guesses of a student in torch for the labelled tokens of each example, in their order."""
    graph.eval()
    losses: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(examples)
    guesses: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(examples)
    done = 0
    for batch in _batches(examples):
        collated = collate([examples[number] for number in batch], graph.student, None)
        with torch.no_grad():
            logits = graph.run(collated.feeds)["logits"].float()
            every = functional.cross_entropy(
                logits.transpose(1, 2), collated.labels, ignore_index=UNLABELLED, reduction="none"
            )
        known, best = collated.labels != UNLABELLED, logits.argmax(-1)
        for place, number in enumerate(batch):
            losses[number] = every[place][known[place]].numpy()
            guesses[number] = best[place][known[place]].numpy()
        done += len(batch)
        if on_progress is not None:
            on_progress(done / len(examples))
    return losses, guesses


def scorer(examples: Sequence[Example]) -> Callable[[TorchGraph], float]:
    """The score that training watches: the mean log-likelihood of a reference's token, in nats (higher is better)."""

    def score(graph: TorchGraph) -> float:
        losses, _ = foresee_summaries(graph, examples)
        return -float(np.concatenate(losses).mean())

    return score


def _batches(examples: Sequence[Example]) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    longest = 0
    for number in sorted(range(len(examples)), key=lambda each: examples[each].tokens):
        example, count = examples[number], len(batches[-1]) + 1
        longest = max(longest, len(example.ids))
        if count > 1 and (count * example.tokens > TOKENS_AT_ONCE or count * longest > TARGETS_AT_ONCE):
            batches.append([])
            longest = len(example.ids)
        batches[-1].append(number)
    return [batch for batch in batches if batch]

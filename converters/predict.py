"""What a torch graph answers to many examples, and the one score that training watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .distillation import UNLABELLED
from .torch_graph import TorchGraph
from .training_data import Example, collate

BATCH = 64


def predict(
    graph: TorchGraph,
    examples: Sequence[Example],
    batch_size: int = BATCH,
    on_progress: Callable[[float], None] | None = None,
) -> list[NDArray[np.float32]]:
    """Each example's output: logits ``[labels]`` or ``[T, labels]``, or an embedding ``[W]``.

    Float32, as every student that was read; float64 where the student's weights were made so.
    ``on_progress`` is told the part of the tokens that is done, 0 to 1.
    """
    graph.eval()
    order = sorted(range(len(examples)), key=lambda number: len(examples[number].ids))
    found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(examples)
    tokens, done = sum(len(example.ids) for example in examples), 0
    left = graph.anatomy.padding_side == "left"
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            outputs = graph.run(collate([examples[number] for number in numbers], graph.student, None).feeds)
            (values,) = (value.numpy() for value in outputs.values())
            for number, row in zip(numbers, values, strict=True):
                length = len(examples[number].ids)
                if row.ndim == 2:
                    row = row[-length:] if left else row[:length]
                found[number] = row.copy()
                done += length
            if on_progress is not None:
                on_progress(done / max(1, tokens))
    return found


def accuracy(outputs: Sequence[NDArray[np.float32]], examples: Sequence[Example]) -> float:
    """Share of labelled texts (or of labelled tokens) whose largest logit is the label's; 0 where none is labelled."""
    right = total = 0
    for output, example in zip(outputs, examples, strict=True):
        known = example.labels != UNLABELLED
        guesses = np.atleast_1d(output.argmax(-1))
        right += int((guesses[known] == example.labels[known]).sum())
        total += int(known.sum())
    return right / total if total else 0.0


def likeness(outputs: Sequence[NDArray[np.float32]], goals: Sequence[NDArray[np.float32]]) -> float:
    """How near embeddings are to a teacher's: mean cosine, or where widths differ the correlation of similarities."""
    got, wanted = np.stack(list(outputs)), np.stack(list(goals))
    if got.shape == wanted.shape:
        return float((got * wanted).sum(-1).mean())
    upper = np.triu_indices(min(len(got), 512), 1)
    limit = min(len(got), 512)
    ours, theirs = got[:limit] @ got[:limit].T, wanted[:limit] @ wanted[:limit].T
    return float(np.corrcoef(ours[upper], theirs[upper])[0, 1])


def scorer(
    examples: Sequence[Example], goals: Sequence[NDArray[np.float32]] | None = None
) -> Callable[[TorchGraph], float]:
    """The score that training watches: accuracy on labels, or for ``embed`` likeness to the teacher's ``goals``."""

    def score(graph: TorchGraph) -> float:
        outputs = predict(graph, examples)
        if graph.student.task == "embed" and goals is not None:
            return likeness(outputs, goals)
        return accuracy(outputs, examples)

    return score

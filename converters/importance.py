"""How much each head, neuron, hidden unit and layer matters, from data.

Units: first-order Taylor expansion of the loss (Molchanov et al., "Importance Estimation for Neural Network
Pruning", 2019): the square of the sum of weight times gradient over all that a unit touches, summed over batches.
Layers: how far a layer turns the hidden state (Men et al., "ShortGPT", 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from ..errors import RecipeError
from .distillation import UNLABELLED
from .student import Student
from .torch_graph import NormStatistics, Recording, TorchGraph
from .training_data import Batch, Example, collate

BATCHES = 8
"""Of examples; with 32 texts each, more of them hardly changed which units stay."""


@dataclass(frozen=True)
class Importance:
    """Scores, higher matters more.

    ``heads`` ``[H]`` and ``neurons`` ``[N]`` by layer, ``hidden`` ``[W]``, ``layers`` ``[L]``; ``norms``: statistics
    of what leaves each layer norm, with which norms are corrected after units go.
    """

    heads: list[torch.Tensor]
    neurons: list[torch.Tensor]
    hidden: torch.Tensor
    layers: torch.Tensor
    norms: NormStatistics


def measure_importance(
    student: Student,
    examples: Sequence[Example],
    batch_size: int = 32,
    batches: int = BATCHES,
    on_progress: Callable[[float], None] | None = None,
) -> Importance:
    """Score every unit of a student on up to ``batches`` batches spread over the examples.

    ``on_progress`` is told the share that is done.

    Raises:
        RecipeError: there are no examples.
    """
    if not examples:
        raise RecipeError("units are scored on data, and there is none: give training data, or prune nothing")
    graph = TorchGraph(student).eval()
    graph.norm_statistics = NormStatistics()
    shape = student.shape
    groups = 1 if student.anatomy.shared_layers else shape.layers
    heads = [torch.zeros(shape.heads) for _ in range(groups)]
    neurons = [torch.zeros(shape.neurons) for _ in range(groups)]
    hidden, turns = torch.zeros(shape.hidden), torch.zeros(shape.layers)
    step = max(1, len(examples) // (batch_size * batches))
    # Texts of like length together: padding costs as much as text does.
    chosen = sorted(examples[::step][: batch_size * batches], key=lambda example: len(example.ids))
    for start in range(0, len(chosen), batch_size):
        batch = collate(chosen[start : start + batch_size], student, None)
        graph.zero_grad()
        recording = Recording(takes_attention=False)
        torch.autograd.backward(_loss(graph.run(batch.feeds, recording), batch))
        _add_scores(graph, heads, neurons, hidden)
        turns += _turns(recording, batch.feeds["attention_mask"], shape.layers)
        if on_progress is not None:
            on_progress(min(1.0, (start + batch_size) / len(chosen)))
    return Importance(heads, neurons, hidden, turns, graph.norm_statistics)


def _loss(outputs: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """The task's loss; where labels are unknown, against what the student itself holds for right."""
    if "embedding" in outputs:
        embedding = outputs["embedding"]
        directions = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0))
        return (embedding * directions).sum()
    logits = outputs["logits"].reshape(-1, outputs["logits"].shape[-1])
    labels = batch.labels.reshape(-1)
    if bool((labels != UNLABELLED).any()):
        return functional.cross_entropy(logits, labels, ignore_index=UNLABELLED)
    return functional.cross_entropy(logits, logits.argmax(-1).detach())


def _add_scores(
    graph: TorchGraph, heads: list[torch.Tensor], neurons: list[torch.Tensor], hidden: torch.Tensor
) -> None:
    shape, anatomy = graph.shape, graph.anatomy
    embedding_is_hidden = anatomy.embedding_follows_hidden(graph.layout)
    sums: dict[tuple[str, int], torch.Tensor] = {}
    for name, parameter in graph.layout.items():
        weight = graph.weight(name)
        if weight.grad is None:
            continue
        layer = anatomy.layer_number(name) or 0
        product = (weight * weight.grad).detach()
        for axis, role in enumerate(parameter.axes):
            kind: str = "hidden" if role == "embedding" and embedding_is_hidden else role
            kind = "heads" if kind == "head" else kind
            if kind not in ("heads", "neurons", "hidden"):
                continue
            others = [other for other in range(product.dim()) if other != axis]
            units = product.sum(others) if others else product
            if role == "heads":
                units = units.reshape(shape.heads, -1).sum(1)
            key = (kind, 0 if kind == "hidden" else layer)
            sums[key] = sums.get(key, torch.zeros_like(units)) + units
    for (counted, layer), units in sums.items():
        target = hidden if counted == "hidden" else (heads if counted == "heads" else neurons)[layer]
        target += units.square()


def _turns(recording: Recording, mask: torch.Tensor, layers: int) -> torch.Tensor:
    """For each layer, one minus the mean cosine between what enters it and what leaves it."""
    kept = mask.bool()
    rows = []
    for layer in range(layers):
        before, after = recording.hidden[layer].detach()[kept], recording.hidden[layer + 1].detach()[kept]
        rows.append(1 - functional.cosine_similarity(before, after, dim=-1).mean())
    return torch.stack(rows)

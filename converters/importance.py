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

from .distillation import UNLABELLED
from .student import Student
from .torch_graph import NormStatistics, Recording, TorchGraph
from .training_data import Batch, Example, collate

PER_LAYER = ("heads", "neurons")


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
    batches: int = 24,
    on_progress: Callable[[float], None] | None = None,
) -> Importance:
    """Score every unit of a student on up to ``batches`` batches spread over the examples."""
    graph = TorchGraph(student).eval()
    graph.norm_statistics = NormStatistics()
    shape = student.shape
    groups = 1 if student.anatomy.shared_layers else shape.layers
    heads = [torch.zeros(shape.heads) for _ in range(groups)]
    neurons = [torch.zeros(shape.neurons) for _ in range(groups)]
    hidden, turns = torch.zeros(shape.hidden), torch.zeros(shape.layers)
    step = max(1, len(examples) // (batch_size * batches))
    chosen = list(examples[::step])[: batch_size * batches]
    for start in range(0, len(chosen), batch_size):
        batch = collate(chosen[start : start + batch_size], student, None)
        graph.zero_grad()
        recording = Recording()
        _loss(graph.run(batch.feeds, recording), batch).backward()
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
    shape = graph.shape
    sums: dict[tuple[str, int], torch.Tensor] = {}
    for layer_name, layer in _layers_of(graph):
        parameter, weight = graph.layout[layer_name], graph.weight(layer_name)
        if weight.grad is None:
            continue
        product = (weight * weight.grad).detach()
        for axis, role in enumerate(parameter.axes):
            if role not in ("heads", "neurons", "hidden"):
                continue
            others = [other for other in range(product.dim()) if other != axis]
            units = product.sum(others) if others else product
            if role == "heads" and units.numel() != shape.heads:
                units = units.reshape(shape.heads, -1).sum(1)
            key = (role, layer if role in PER_LAYER else 0)
            sums[key] = sums.get(key, torch.zeros_like(units)) + units
    for (role, layer), units in sums.items():
        target = hidden if role == "hidden" else (heads if role == "heads" else neurons)[layer]
        target += units.square()


def _layers_of(graph: TorchGraph) -> list[tuple[str, int]]:
    """Every tensor's name with the number of its layer (0 for tensors outside of layers)."""
    found = []
    for layer in range(graph.shape.layers):
        start = graph.anatomy.layer_prefix.format(layer=layer)
        found += [(name, layer) for name in graph.layout if start in name]
    inside = {name for name, _ in found}
    return found + [(name, 0) for name in graph.layout if name not in inside]


def _turns(recording: Recording, mask: torch.Tensor, layers: int) -> torch.Tensor:
    """For each layer, one minus the mean cosine between what enters it and what leaves it."""
    kept = mask.bool()
    rows = []
    for layer in range(layers):
        before, after = recording.hidden[layer].detach()[kept], recording.hidden[layer + 1].detach()[kept]
        rows.append(1 - functional.cosine_similarity(before, after, dim=-1).mean())
    return torch.stack(rows)

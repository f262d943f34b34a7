"""How much each head, neuron, hidden unit and layer matters, from data.

Units: first-order Taylor expansion of the loss (Molchanov et al., "Importance Estimation for Neural Network
Pruning", 2019): the square of the sum of weight times gradient over all that a unit touches, summed over batches.
The loss is the task's; a writer's that of foreseeing the next token.
Layers: how far a layer turns the hidden state (Men et al., "ShortGPT", 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from ..errors import RecipeError
from .anatomy import Shape
from .distillation import UNLABELLED
from .student import Student
from .torch_decoder import graph_of
from .torch_graph import NormStatistics, Recording, TorchGraph
from .training_data import Batch, Example, collate

BATCHES = 8
"""Of examples; with 32 texts each, more of them hardly changed which units stay."""

WRITING_BATCHES = 16

WRITING_BATCH = 4
"""Pieces of text in a writer's batch: its logits are as wide as its vocabulary."""


@dataclass(frozen=True)
class Importance:
    """Scores, higher matters more.

    ``heads`` ``[H]`` (of decoders ``[K]``: a key/value head with all the heads that read it) and ``neurons`` ``[N]``
    by layer, ``hidden`` ``[W]``, ``layers`` ``[L]``; ``norms``: statistics of what leaves each norm, with which norms
    are corrected after units go.
    """

    heads: list[torch.Tensor]
    neurons: list[torch.Tensor]
    hidden: torch.Tensor
    layers: torch.Tensor
    norms: NormStatistics


def measure_importance(
    student: Student,
    examples: Sequence[Example],
    batch_size: int | None = None,
    batches: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Importance:
    """Score every unit of a student on up to ``batches`` batches spread over the examples.

    By default 8 batches of 32 texts, for a writer 16 of 4 pieces. ``on_progress`` is told the share that is done.

    Raises:
        RecipeError: there are no examples.
    """
    if not examples:
        raise RecipeError("units are scored on data, and there is none: give training data, or prune nothing")
    writes = student.task == "generate"
    batch_size = batch_size or (WRITING_BATCH if writes else 32)
    batches = batches or (WRITING_BATCHES if writes else BATCHES)
    graph = graph_of(student).eval()
    graph.norm_statistics = NormStatistics()
    shape = student.shape
    groups = 1 if student.anatomy.shared_layers else shape.layers
    heads = [torch.zeros(shape.heads // shape.group) for _ in range(groups)]
    neurons = [torch.zeros(shape.neurons) for _ in range(groups)]
    hidden, turns = torch.zeros(shape.hidden), torch.zeros(shape.layers)
    step = max(1, len(examples) // (batch_size * batches))
    # Texts of like length together: padding costs as much as text does.
    chosen = sorted(examples[::step][: batch_size * batches], key=lambda example: len(example.ids))
    for start in range(0, len(chosen), batch_size):
        batch = collate(chosen[start : start + batch_size], student, None)
        graph.zero_grad()
        recording = Recording(takes_attention=False)
        outputs = graph.run(batch.feeds, recording)
        torch.autograd.backward(_writing_loss(outputs, batch) if writes else _loss(outputs, batch))
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


def _writing_loss(outputs: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """How badly each token is foreseen from those before it."""
    kept = batch.feeds["attention_mask"][:, 1:].bool()
    return functional.cross_entropy(outputs["logits"][:, :-1][kept], batch.feeds["input_ids"][:, 1:][kept])


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
            kind = "heads" if kind in ("head", "kv_heads", "joined") else kind
            if kind not in ("heads", "neurons", "hidden"):
                continue
            others = [other for other in range(product.dim()) if other != axis]
            units = product.sum(others) if others else product
            if kind == "heads":
                units = _of_groups(units, role, shape)
            key = (kind, 0 if kind == "hidden" else layer)
            sums[key] = sums.get(key, torch.zeros_like(units)) + units
    for (counted, layer), units in sums.items():
        target = hidden if counted == "hidden" else (heads if counted == "heads" else neurons)[layer]
        target += units.square()


def _of_groups(units: torch.Tensor, role: str, shape: Shape) -> torch.Tensor:
    """The sums over what belongs to one head, or to one key/value head and those that read it."""
    groups = shape.heads // shape.group
    if role != "joined":
        return units.reshape(groups, -1).sum(1)
    widths = [shape.heads * shape.head_width, *[shape.kv_heads * shape.head_width] * 2]
    return torch.stack([part.reshape(groups, -1).sum(1) for part in torch.split(units, widths)]).sum(0)


def _turns(recording: Recording, mask: torch.Tensor, layers: int) -> torch.Tensor:
    """For each layer, one minus the mean cosine between what enters it and what leaves it."""
    kept = mask.bool()
    rows = []
    for layer in range(layers):
        before, after = recording.hidden[layer].detach()[kept], recording.hidden[layer + 1].detach()[kept]
        rows.append(1 - functional.cosine_similarity(before, after, dim=-1).mean())
    return torch.stack(rows)

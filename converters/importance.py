"""How much each head, neuron, hidden unit and layer matters, from data.

Units: first-order Taylor expansion of the loss (Molchanov et al., "Importance Estimation for Neural Network
Pruning", 2019): the square of the sum of weight times gradient over all that a unit touches, summed over batches.
The loss is the task's; a writer's and a summariser's that of foreseeing the next token.
Layers: how far a layer turns the hidden state (Men et al., "ShortGPT", 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from ..errors import RecipeError
from .anatomy import Shape, UnitKind
from .distillation import UNLABELLED
from .student import Student
from .torch_decoder import graph_of
from .torch_graph import NormStatistics, Recording, TorchGraph
from .training_data import Batch, Example, collate

BATCHES = 8
"""Of examples; with 32 texts each, more of them hardly changed which units stay."""

WRITING_BATCHES = 16

WRITING_BATCH = 4
"""Pieces of text in the batch of a writer or summariser: its logits are as wide as its vocabulary."""

Feeds = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Importance:
    """Scores, higher matters more.

    ``units``: by kind, for each layer, the scores of its heads ``[H]`` (of decoders ``[K]``: a key/value head with all
    the heads that read it) or neurons ``[N]``; ``hidden`` ``[W]``, ``layers`` ``[L]`` and of encoder-decoders
    ``decoder_layers`` ``[L]``; ``norms``: statistics of what leaves each norm, with which norms are corrected after
    units go.
    """

    units: Mapping[UnitKind, list[torch.Tensor]]
    hidden: torch.Tensor
    layers: torch.Tensor
    decoder_layers: torch.Tensor
    norms: NormStatistics

    @property
    def heads(self) -> list[torch.Tensor]:
        """Of an encoder or decoder, or of an encoder-decoder's encoder."""
        return self.units["heads"]

    @property
    def neurons(self) -> list[torch.Tensor]:
        """Of an encoder or decoder, or of an encoder-decoder's encoder."""
        return self.units["neurons"]


def measure_importance(
    student: Student,
    examples: Sequence[Example],
    batch_size: int | None = None,
    batches: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Importance:
    """Score every unit of a student on up to ``batches`` batches spread over the examples.

    By default 8 batches of 32 texts, for a writer or summariser 16 of 4. ``on_progress`` is told the share that is
    done.

    Raises:
        RecipeError: there are no examples.
    """
    if not examples:
        raise RecipeError("units are scored on data, and there is none: give training data, or prune nothing")
    writes = student.task in ("generate", "summarize")
    batch_size = batch_size or (WRITING_BATCH if writes else 32)
    batches = batches or (WRITING_BATCHES if writes else BATCHES)
    step = max(1, len(examples) // (batch_size * batches))
    # Texts of like length together: padding costs as much as text does.
    chosen = sorted(examples[::step][: batch_size * batches], key=lambda example: example.tokens)
    parts = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    collated = (collate(part, student, None) for part in parts)
    pairs = ((batch.feeds, _targets(batch, student)) for batch in collated)
    return score_units(student, pairs, len(parts), on_progress)


def score_units(
    student: Student,
    batches: Iterable[tuple[Feeds, torch.Tensor]],
    count: int,
    on_progress: Callable[[float], None] | None = None,
) -> Importance:
    """Score every unit of a student on ``count`` batches: feeds by input name, and what is right.

    That is int64 class numbers in the shape of the logits without their last axis, ``UNLABELLED`` (-100) where there is
    none. Where there is none in all of a batch, what the student itself holds for right counts; for ``embed`` it is
    not looked at.
    """
    graph = graph_of(student).eval()
    graph.norm_statistics = NormStatistics()
    shape, anatomy = student.shape, student.anatomy
    sizes = anatomy.unit_counts(shape)
    units: dict[UnitKind, list[torch.Tensor]] = {
        kind: [torch.zeros(count) for _ in range(layers)] for kind, (layers, count) in sizes.items()
    }
    hidden, turns = torch.zeros(shape.hidden), torch.zeros(shape.layers)
    decoder_turns = torch.zeros(shape.decoder_layers)
    for done, (feeds, targets) in enumerate(batches, 1):
        graph.zero_grad()
        recording = Recording(takes_attention=False)
        outputs = graph.run(feeds, recording)
        torch.autograd.backward(_loss(outputs, targets))
        _add_scores(graph, units, hidden)
        own = feeds.get("source_mask", feeds["attention_mask"])
        turns += _turns(recording, own, range(shape.layers))
        first = shape.layers + 1
        decoder_turns += _turns(recording, feeds["attention_mask"], range(first, first + shape.decoder_layers))
        if on_progress is not None:
            on_progress(min(1.0, done / count))
    return Importance(units, hidden, turns, decoder_turns, graph.norm_statistics)


def _targets(batch: Batch, student: Student) -> torch.Tensor:
    """What is right for each row of the logits; a writer's next token, which its labels need not say."""
    if student.task != "generate":
        return batch.labels
    ids, mask = batch.feeds["input_ids"], batch.feeds["attention_mask"]
    following = torch.full_like(ids, UNLABELLED)
    following[:, :-1] = torch.where(mask[:, 1:].bool(), ids[:, 1:], UNLABELLED)
    return following


def _loss(outputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """The task's loss; where labels are unknown, against what the student itself holds for right."""
    if "embedding" in outputs:
        embedding = outputs["embedding"]
        directions = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0))
        return (embedding * directions).sum()
    logits = outputs["logits"].reshape(-1, outputs["logits"].shape[-1])
    labels = targets.reshape(-1)
    if bool((labels != UNLABELLED).any()):
        return functional.cross_entropy(logits, labels, ignore_index=UNLABELLED)
    return functional.cross_entropy(logits, logits.argmax(-1).detach())


def _add_scores(graph: TorchGraph, units: Mapping[UnitKind, list[torch.Tensor]], hidden: torch.Tensor) -> None:
    shape, anatomy = graph.shape, graph.anatomy
    embedding_is_hidden = anatomy.embedding_follows_hidden(graph.layout)
    sums: dict[tuple[UnitKind | None, int], torch.Tensor] = {}
    for name, parameter in graph.layout.items():
        weight = graph.weight(name)
        if weight.grad is None:
            continue
        layer = anatomy.layer_number(name) or 0
        product = (weight * weight.grad).detach()
        for axis, role in enumerate(parameter.axes):
            is_hidden = role == "hidden" or (role == "embedding" and embedding_is_hidden)
            kind = anatomy.unit_kind(role)
            if kind is None and not is_hidden:
                continue
            others = [other for other in range(product.dim()) if other != axis]
            scores = product.sum(others) if others else product
            if kind in ("heads", "decoder_heads", "cross_heads"):
                scores = _of_groups(scores, role, len(units[kind][0]), shape)
            key = (kind, layer if kind is not None else 0)
            sums[key] = sums.get(key, torch.zeros_like(scores)) + scores
    for (counted, layer), scores in sums.items():
        target = hidden if counted is None else units[counted][layer]
        target += scores.square()


def _of_groups(units: torch.Tensor, role: str, groups: int, shape: Shape) -> torch.Tensor:
    """The sums over what belongs to one head, or to one key/value head and those that read it."""
    if role != "joined":
        return units.reshape(groups, -1).sum(1)
    widths = [shape.heads * shape.head_width, *[shape.kv_heads * shape.head_width] * 2]
    return torch.stack([part.reshape(groups, -1).sum(1) for part in torch.split(units, widths)]).sum(0)


def _turns(recording: Recording, mask: torch.Tensor, layers: range) -> torch.Tensor:
    """For each layer, one minus the mean cosine between what enters it and what leaves it."""
    kept, rows = mask.bool(), [torch.zeros(0)]
    for layer in layers:
        before, after = recording.hidden[layer].detach()[kept], recording.hidden[layer + 1].detach()[kept]
        rows.append(1 - functional.cosine_similarity(before, after, dim=-1).mean().reshape(1))
    return torch.cat(rows)


"""The losses that teach a student: from its teacher's outputs, hidden states and attention maps, and from labels.

- soft labels: Kullback-Leibler divergence at a temperature (Hinton et al., "Distilling the Knowledge in a Neural
  Network", 2015);
- hidden states with a layer map, through a learned projection where the widths differ, and attention maps (Jiao
  et al., "TinyBERT", 2020); maps are averaged over heads, so that the numbers of heads need not agree;
- the task's own loss on labels; a writer's labels are the tokens that follow, a summariser's those of the summary.

An encoder-decoder's halves have a layer map each. That its teacher's own summaries are learned (Kim and Rush,
"Sequence-Level Knowledge Distillation", 2016) is a matter of the examples:
:mod:`~edgescribe.converters.teacher_summaries`.

Where the vocabulary was trimmed, the two cut texts differently: each of the student's tokens then learns from the
teacher's token that it lies in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import nn

from .anatomy import Shape, Task
from .torch_graph import Recording
from .vocabulary_losses import vocabulary_losses

UNLABELLED = -100
"""Label of a text or token that has none."""


@dataclass(frozen=True)
class DistillationWeights:
    """How much each loss counts; 0 leaves it out. ``temperature`` softens the teacher's and student's outputs."""

    soft: float = 1.0
    hidden: float = 1.0
    attention: float = 0.5
    labels: float = 0.3
    temperature: float = 2.0

    @property
    def looks_inside(self) -> bool:
        """Whether hidden states or attention maps are wanted."""
        return self.hidden > 0 or self.attention > 0


def layer_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """For each student layer from 0 (the embeddings) to the last, the teacher's layer that stands as far up."""
    return tuple(round(layer * teacher_layers / student_layers) for layer in range(student_layers + 1))


def layer_maps(student: Shape, teacher: Shape) -> tuple[int, ...]:
    """The layer map of a whole student: of encoder-decoders, whose decoder's layers count on, both halves'."""
    found = layer_map(student.layers, teacher.layers)
    if student.decoder_layers:
        decoder = layer_map(student.decoder_layers, teacher.decoder_layers)
        found += tuple(teacher.layers + 1 + layer for layer in decoder)
    return found


class Distillation(nn.Module):
    """The sum of the losses for one student and teacher; its projections are trained along and thrown away.

    ``teacher_rows``: for a student that writes with a trimmed vocabulary, the teacher's number of each of its tokens,
    int64 ``[V]``: the teacher's likelihoods of those alone are what it learns.
    """

    def __init__(
        self,
        task: Task,
        student: Shape,
        teacher: Shape | None,
        weights: DistillationWeights,
        teacher_rows: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.teacher_rows = teacher_rows
        self.task, self.weights = task, weights
        self.map = layer_maps(student, teacher) if teacher is not None else ()
        self.encoder_layers = student.layers
        self.projections = nn.ModuleList()
        if teacher is not None and weights.hidden > 0:
            for _ in self.map:
                projection = nn.Linear(student.hidden, teacher.hidden, bias=False)
                if student.hidden == teacher.hidden:
                    nn.init.eye_(projection.weight)
                self.projections.append(projection)

    def forward(
        self,
        outputs: dict[str, torch.Tensor],
        mask: torch.Tensor,
        labels: torch.Tensor | None,
        recording: Recording | None = None,
        teacher_outputs: dict[str, torch.Tensor] | None = None,
        teacher_recording: Recording | None = None,
        places: torch.Tensor | None = None,
        source_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            outputs: the student's: ``logits`` ``[B, L]`` or ``[B, T, L]``, or ``embedding`` ``[B, W]``.
            mask: ``[B, T]``.
            labels: ``[B]`` or ``[B, T]``, :data:`UNLABELLED` where there is none.
            places: int64 ``[B, T]``, in which of the teacher's tokens each of the student's lies.
            source_mask: ``[B, S]``, of encoder-decoders.
        """
        key = "embedding" if self.task == "embed" else "logits"
        total = outputs[key].new_zeros(())
        if self.task in ("generate", "summarize"):
            seen = None if teacher_outputs is None else teacher_outputs[key]
            total = total + self._of_vocabulary(outputs[key], seen, mask, labels, places)
        elif labels is not None and self.weights.labels > 0 and self.task != "embed" and bool((labels >= 0).any()):
            flat = outputs[key].reshape(-1, outputs[key].shape[-1])
            loss = functional.cross_entropy(flat, labels.reshape(-1), ignore_index=UNLABELLED)
            total = total + self.weights.labels * loss
        if teacher_outputs is not None and self.weights.soft > 0 and self.task not in ("generate", "summarize"):
            total = total + self.weights.soft * self._soft(outputs[key], teacher_outputs[key], mask, places)
        if recording is not None and teacher_recording is not None and places is not None:
            if self.weights.hidden > 0:
                hidden = self._hidden(recording, teacher_recording, mask, places, source_mask)
                total = total + self.weights.hidden * hidden
            # Those whose engines fuse attention (decoders) record no maps of it.
            if self.weights.attention > 0 and recording.attention:
                total = total + self.weights.attention * self._attention(recording, teacher_recording, mask, places)
        return total

    def _of_vocabulary(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor | None,
        mask: torch.Tensor,
        labels: torch.Tensor | None,
        places: torch.Tensor | None,
    ) -> torch.Tensor:
        """The losses of a writer's or summariser's tokens, from logits ``[B, T, V]``."""
        rows = None
        if teacher is not None:
            length = torch.arange(teacher.shape[0])[:, None] * teacher.shape[1]
            rows = length + (torch.arange(student.shape[1])[None] if places is None else places)
            rows = torch.where(mask.bool(), rows, -1).reshape(-1)
        return vocabulary_losses(
            student.flatten(0, 1),
            labels=None if labels is None else labels.reshape(-1).long(),
            label_weight=self.weights.labels,
            teacher=None if teacher is None else teacher.flatten(0, 1),
            teacher_weight=self.weights.soft,
            rows=rows,
            columns=self.teacher_rows,
            temperature=self.weights.temperature,
        )

    def _soft(
        self, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, places: torch.Tensor | None
    ) -> torch.Tensor:
        if self.task == "embed":
            if student.shape[-1] == teacher.shape[-1]:
                return (1 - (student * teacher).sum(-1)).mean()
            # Widths differ: the texts of a batch shall be as near to each other as the teacher has them.
            return functional.mse_loss(student @ student.T, teacher @ teacher.T) * student.shape[0]
        if self.task == "tag":
            kept = mask.bool()
            teacher = teacher if places is None else _at(teacher, places)
            student, teacher = student[kept], teacher[kept]
        heat = self.weights.temperature
        divergence = functional.kl_div(
            functional.log_softmax(student / heat, -1),
            functional.log_softmax(teacher / heat, -1),
            reduction="batchmean",
            log_target=True,
        )
        return divergence * heat * heat

    def _hidden(
        self,
        student: Recording,
        teacher: Recording,
        mask: torch.Tensor,
        places: torch.Tensor,
        source_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        total = mask.new_zeros((), dtype=torch.float32)
        for layer, projection in enumerate(self.projections):
            goal = teacher.hidden[self.map[layer]].float()
            if source_mask is not None and layer <= self.encoder_layers:
                # Teacher and student read the source's same tokens.
                weight = source_mask.to(torch.float32)[:, :, None]
            else:
                goal, weight = _at(goal, places), mask.to(torch.float32)[:, :, None]
            guess = projection(student.hidden[layer].float()).float()
            spread = (goal.square() * weight).sum() / weight.sum()
            error = ((guess - goal).square() * weight).sum() / weight.sum()
            total = total + error / spread.clamp(min=1e-6)
        return total / len(self.projections)

    def _attention(
        self, student: Recording, teacher: Recording, mask: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """Divergence of the student's shares of attention from the teacher's.

        Where several of the student's tokens lie in one of the teacher's, they share what that one gets.
        """
        weight = mask.to(torch.float32)
        total = weight.new_zeros(())
        tokens = max(int(places.max()) + 1, teacher.attention[0].shape[-1])
        sharers = torch.zeros(places.shape[0], tokens).scatter_add_(1, places, weight).gather(1, places).clamp(min=1.0)
        for layer, guess in enumerate(student.attention):
            goal = _at(teacher.attention[max(self.map[layer + 1] - 1, 0)].float(), places)
            index = places[:, None, :].expand(-1, goal.shape[1], -1)
            goal = goal.gather(2, index) * (weight / sharers)[:, None, :]
            goal = goal / goal.sum(-1, keepdim=True).clamp(min=1e-6)
            divergence = (goal * (goal.clamp(min=1e-9).log() - guess.clamp(min=1e-9).log())).sum(-1)
            total = total + (divergence * weight).sum() / weight.sum()
        return total / max(1, len(student.attention))


def _at(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rows of ``x`` ``[B, T', W]`` at ``places`` ``[B, T]``: ``[B, T, W]``."""
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[-1]))

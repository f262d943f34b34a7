"""A writer's losses over its vocabulary, computed a few tokens at a time.

The logits of a batch are its largest tensors by far (2,000 tokens times 49,152 pieces are 400 MB), and the plain
formulas go through ten such tensors. Here losses and their gradient are taken together, for as many tokens as stay in
the processor's caches; what is kept for the backward pass is one gradient in the logits' own precision.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional

CHUNK = 1 << 20
"""Logits that are taken at once."""

UNLIKELY = -1e4
"""The logit of what a teacher has no token for."""


class _VocabularyLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: torch.Tensor,
        labels: torch.Tensor | None,
        teacher: torch.Tensor | None,
        rows: torch.Tensor | None,
        columns: torch.Tensor | None,
        weights: tuple[float, float],
        heat: float,
    ) -> torch.Tensor:
        """Arguments are :func:`vocabulary_losses`'s."""
        exact = torch.float64 if student.dtype == torch.float64 else torch.float32
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64)
        labelled = max(1, int((labels >= 0).sum())) if labels is not None else 1
        taught = max(1, int((rows >= 0).sum())) if rows is not None else 1
        size = max(1, CHUNK // student.shape[1])
        for begin in range(0, student.shape[0], size):
            part = slice(begin, begin + size)
            logits = student[part].to(exact)
            slope = torch.zeros_like(logits)
            if labels is not None and weights[0] > 0:
                known = torch.nonzero(labels[part] >= 0)[:, 0]
                likely = functional.log_softmax(logits[known], -1)
                picked = labels[part][known, None]
                total -= likely.gather(1, picked).sum().double() * (weights[0] / labelled)
                share = likely.exp_().scatter_add_(1, picked, -torch.ones_like(picked, dtype=exact))
                slope.index_add_(0, known, share, alpha=weights[0] / labelled)
            if teacher is not None and rows is not None and weights[1] > 0:
                known = torch.nonzero(rows[part] >= 0)[:, 0]
                wanted = teacher[rows[part][known]].to(exact)
                if columns is not None:
                    wanted = wanted[:, columns.clamp(min=0)].masked_fill_(columns < 0, UNLIKELY)
                goal = functional.log_softmax(wanted / heat, -1)
                guess = functional.log_softmax(logits[known] / heat, -1)
                share = goal.exp()
                total += (share * (goal - guess)).sum().double() * (weights[1] * heat * heat / taught)
                slope.index_add_(0, known, guess.exp_().sub_(share), alpha=weights[1] * heat / taught)
            if gradient is not None:
                gradient[part] = slope
        ctx.save_for_backward(gradient)
        return total.to(exact)

    @staticmethod
    def backward(ctx: Any, above: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient was taken along with the losses."""
        (gradient,) = ctx.saved_tensors
        return gradient * above.to(gradient.dtype), None, None, None, None, None, None


def vocabulary_losses(
    student: torch.Tensor,
    *,
    labels: torch.Tensor | None = None,
    label_weight: float = 0.0,
    teacher: torch.Tensor | None = None,
    teacher_weight: float = 0.0,
    rows: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """``label_weight`` times the cross-entropy of labels plus ``teacher_weight`` times the divergence from a teacher.

    Args:
        student: logits ``[N, V]`` of N tokens.
        labels: int64 ``[N]``, below 0 where a token has none.
        teacher: logits ``[M, V']``; with ``rows``, int64 ``[N]``, which of them each token learns from (below 0:
            none), and ``columns``, int64 ``[V]``, the teacher's number of each piece where that differs (below 0: it
            has none).
        temperature: softens both distributions (Hinton et al., "Distilling the Knowledge in a Neural Network",
            2015); the divergence is multiplied by its square.

    Returns:
        A scalar in nats a token: each mean is over the tokens that have what it needs.
    """
    loss: torch.Tensor = _VocabularyLosses.apply(  # type: ignore[no-untyped-call]
        student, labels, teacher, rows, columns, (label_weight, teacher_weight), temperature
    )
    return loss

"""A writer's losses: those of the plain formulas, and so their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional
from edgescribe.converters import vocabulary_losses as losses
from hypothesis import given, settings
from hypothesis import strategies as st

PIECES, TEACHERS_PIECES = 7, 9


def plain(
    student: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, rows: torch.Tensor,
    columns: torch.Tensor | None, weights: tuple[float, float], heat: float,
) -> torch.Tensor:  # fmt: skip
    total = student.new_zeros(())
    if (labels >= 0).any():
        total = total + weights[0] * functional.cross_entropy(student[labels >= 0], labels[labels >= 0])
    if (rows >= 0).any():
        goal = teacher[rows[rows >= 0]]
        if columns is not None:
            goal = goal[:, columns.clamp(min=0)].masked_fill(columns < 0, -1e4)
        guess, goal = (functional.log_softmax(each / heat, -1) for each in (student[rows >= 0], goal))
        divergence = functional.kl_div(guess, goal, reduction="batchmean", log_target=True)
        total = total + weights[1] * divergence * heat * heat
    return total


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(0, 10**6), st.booleans(), st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.3, 1.5)]),
    st.sampled_from([0.5, 1.0, 2.0]), st.integers(1, 40),
)  # fmt: skip
def test_losses_and_gradients_are_those_of_the_plain_formulas(
    tokens: int, seed: int, trimmed: bool, weights: tuple[float, float], heat: float, chunk: int
) -> None:
    noise = torch.Generator().manual_seed(seed)
    student = torch.randn(tokens, PIECES, generator=noise, dtype=torch.float64, requires_grad=True)
    width = TEACHERS_PIECES if trimmed else PIECES
    teacher = torch.randn(5, width, generator=noise, dtype=torch.float64)
    labels = torch.randint(-1, PIECES, (tokens,), generator=noise)
    rows = torch.randint(-1, 5, (tokens,), generator=noise)
    columns = torch.randint(-1, width, (PIECES,), generator=noise) if trimmed else None
    expected = plain(student, labels, teacher, rows, columns, weights, heat)
    before, losses.CHUNK = losses.CHUNK, chunk
    try:
        found = losses.vocabulary_losses(
            student, labels=labels, label_weight=weights[0], teacher=teacher, teacher_weight=weights[1], rows=rows,
            columns=columns, temperature=heat,
        )  # fmt: skip
    finally:
        losses.CHUNK = before
    torch.testing.assert_close(found, expected)
    if expected.requires_grad:
        slopes = torch.autograd.grad(3.0 * expected, student)[0]
        torch.testing.assert_close(torch.autograd.grad(3.0 * found, student)[0], slopes)


def test_nothing_to_learn_from_costs_nothing() -> None:
    student = torch.randn(3, PIECES, requires_grad=True)
    loss = losses.vocabulary_losses(student, labels=torch.full((3,), -100), label_weight=1.0)
    loss.backward()
    assert float(loss) == 0.0
    assert student.grad is not None
    assert not student.grad.any()


def test_logits_in_half_precision_lose_little() -> None:
    student = torch.randn(50, 300, generator=torch.Generator().manual_seed(1))
    teacher = student + 0.5 * torch.randn(50, 300, generator=torch.Generator().manual_seed(2))
    options = {"teacher_weight": 1.0, "rows": torch.arange(50)}
    exact = losses.vocabulary_losses(student, teacher=teacher, **options)
    rough = losses.vocabulary_losses(student.bfloat16(), teacher=teacher.bfloat16(), **options)
    assert float(rough) == pytest.approx(float(exact), rel=0.01)

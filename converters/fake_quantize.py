"""Fake quantisation: rounding to the exported grid inside a float forward pass, with gradients.

- Rows of weights and tables: symmetric int8, the scale follows the row's largest magnitude at every step; the
  gradient passes straight through (Bengio et al., "Estimating or propagating gradients through stochastic
  neurons", 2013). The arithmetic is that of :func:`~edgescribe.converters.quantized_weights.quantize_rows`.
- Static activations: affine int8 with learned scale and zero point (Esser et al., "Learned Step Size
  Quantization", 2020; Bhalgat et al., "LSQ+", 2020), started from calibration.
- Dynamic activations: symmetric int8 for each token, as the engines take them while running.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .quantized_weights import BLOCK, Grid

SAMPLE = 1 << 16
"""Activation values kept of each tensor for calibration."""

ZERO_POINT_UNIT = 64.0
"""What one unit of a learned shift is, in steps of the grid."""

SMALLEST_SCALE = 1e-6


class _RoundedRows(torch.autograd.Function):
    """Rounds each row to symmetric int8; the very numbers of the grid come out, and gradients pass unchanged."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """``x`` ``[…, columns]``."""
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127.0
        rounded: torch.Tensor = torch.clamp(torch.round(x / scale), -127, 127) * scale
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """Straight through."""
        return gradient


def fake_quantize_rows(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` ``[…, columns]`` rounded to int8 with one scale for each row; straight-through gradient."""
    rounded: torch.Tensor = _RoundedRows.apply(weight)  # type: ignore[no-untyped-call]
    return rounded


SMALLEST_BLOCK_SCALE, LARGEST_BLOCK_SCALE = 2.0**-14, 2.0**15


class _ExactScales(torch.autograd.Function):
    """``exp`` of logarithms, rounded to what bfloat16 and float16 both hold; the rounding's gradient passes through."""

    @staticmethod
    def forward(ctx: Any, logarithms: torch.Tensor) -> torch.Tensor:
        """The arithmetic is that of :func:`~edgescribe.converters.quantized_weights.exact_scales`."""
        scales = logarithms.float().exp().clamp(SMALLEST_BLOCK_SCALE, LARGEST_BLOCK_SCALE).bfloat16().float()
        ctx.save_for_backward(scales)
        return scales

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """That of ``exp``."""
        (scales,) = ctx.saved_tensors
        passed: torch.Tensor = gradient * scales
        return passed


def exact_scales(logarithms: torch.Tensor) -> torch.Tensor:
    """Scales as they are exported, float32, from their learned logarithms."""
    scales: torch.Tensor = _ExactScales.apply(logarithms)  # type: ignore[no-untyped-call]
    return scales


def largest_magnitudes(weight: torch.Tensor) -> torch.Tensor:
    """The scales ``[out, in / 32]`` at which the largest magnitude of each block of ``weight`` falls on 7."""
    blocks = weight.reshape(weight.shape[0], -1, BLOCK)
    return (blocks.abs().amax(-1) / 7.0).clamp(SMALLEST_BLOCK_SCALE, LARGEST_BLOCK_SCALE)


class _RoundedBlocks(torch.autograd.Function):
    """Rounds each block of 32 to int4, with the gradients of Esser et al., "Learned Step Size Quantization" (2020)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """``x`` ``[…, columns]``, ``scales`` ``[…, columns / 32]``."""
        blocks = x.reshape(*scales.shape, BLOCK)
        steps = blocks / scales.unsqueeze(-1)
        rounded = torch.clamp(torch.round(steps), -8, 7)
        ctx.save_for_backward(steps, rounded)
        result: torch.Tensor = rounded * scales.unsqueeze(-1)
        return result.reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Straight through inside the grid's range; a scale's is summed over its block and tempered as LSQ has it."""
        steps, rounded = ctx.saved_tensors
        inside = (steps >= -8.5) & (steps <= 7.5)
        blocks = gradient.reshape(steps.shape)
        by_scale = torch.where(inside, rounded - steps, rounded)
        temper = (BLOCK * 7.0) ** -0.5
        return (blocks * inside).reshape(gradient.shape), (blocks * by_scale).sum(-1) * temper


def fake_quantize_blocks(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``weight`` ``[…, columns]`` rounded to int4 in blocks of 32 with ``scales`` ``[…, columns / 32]``."""
    rounded: torch.Tensor = _RoundedBlocks.apply(weight, scales)  # type: ignore[no-untyped-call]
    return rounded


def step_through(x: torch.Tensor, values: int) -> int:
    """The step at which about so many ``values`` of ``x`` are taken, of every column alike.

    It has no factor in common with the width: a step that has one would visit some columns alone, and those whose
    values are large, as transformers have them, would be missed.
    """
    step = max(1, x.numel() // values)
    while math.gcd(step, x.shape[-1]) > 1:
        step += 1
    return step


class _LearnedGrid(torch.autograd.Function):
    """Rounds to an int8 grid; gradients for the values, and for scale and zero point as LSQ+ has them.

    The grid's two gradients are sums over all values; they are taken over an even sample of at most ``SAMPLE`` of
    them, which costs a sixth of the time and leaves them unbiased.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
        """``x`` float32 of any shape, ``scale`` and ``zero_point`` ``[1]``."""
        zero = int(torch.clamp(torch.round(zero_point), -128, 127))
        rounded: torch.Tensor
        rounded, inside = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(x, float(scale), zero, -128, 127)
        step = step_through(x, SAMPLE)
        ctx.save_for_backward(inside, x.reshape(-1)[::step].clone(), scale)
        ctx.step, ctx.zero, ctx.elements = step, zero, x.numel()
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Straight through inside the grid's range; the factor is LSQ's ``1 / sqrt(N * 127)``."""
        inside, sample, scale = ctx.saved_tensors
        of_sample = gradient.reshape(-1)[:: ctx.step]
        steps = torch.round(sample / scale) + ctx.zero
        clamped = torch.clamp(steps, -128, 127)
        within = steps == clamped
        by_scale = torch.where(within, clamped - ctx.zero - sample / scale, clamped - ctx.zero)
        factor = ctx.step * (max(1.0, float(ctx.elements)) * 127.0) ** -0.5
        scale_gradient = (of_sample * by_scale).sum().reshape(1) * factor
        zero_gradient = (of_sample * ~within).sum().reshape(1) * -scale * factor
        return gradient * inside, scale_gradient, zero_gradient


class StaticQuantizer(nn.Module):
    """One activation tensor's affine int8 grid with learned scale and zero point.

    Before :meth:`start` it observes: values pass unchanged and a sample of them is kept.
    With ``rectified`` the tensor is known to be non-negative: its zero point stays at -128.

    Attributes:
        covers_all: whether the grid is started so that it holds whatever was observed, not the sample with the least
            error: for logits, of which the few largest tell.
    """

    log_scale: nn.Parameter
    shift: nn.Parameter
    started: torch.Tensor

    def __init__(self, rectified: bool = False) -> None:
        super().__init__()
        self.rectified = rectified
        # An optimiser's step is about its learning rate in size whatever the gradient: so the scale is learned as
        # its logarithm and the zero point in units of ZERO_POINT_UNIT, which makes such steps sensible.
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.shift = nn.Parameter(
            torch.full((1,), -128.0 / ZERO_POINT_UNIT if rectified else 0.0), requires_grad=not rectified
        )
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.covers_all = False
        self._is_started: bool | None = None
        self._range = (0.0, 0.0)
        self._sample: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` of any shape, rounded to the grid once started."""
        if self._is_started is None:
            self._is_started = bool(self.started)
        if not self._is_started:
            self._observe(x)
            return x
        dtype = x.dtype
        scale = self.log_scale.exp().clamp(min=SMALLEST_SCALE)
        zero_point = self.shift * ZERO_POINT_UNIT
        result: torch.Tensor = _LearnedGrid.apply(x.float(), scale, zero_point)  # type: ignore[no-untyped-call]
        return result.to(dtype)

    @torch.no_grad()
    def _observe(self, x: torch.Tensor) -> None:
        flat = x.detach().float().reshape(-1)
        if self.covers_all:
            self._range = min(self._range[0], float(flat.min())), max(self._range[1], float(flat.max()))
        if sum(part.numel() for part in self._sample) < SAMPLE:
            self._sample.append(flat[:: step_through(x, SAMPLE // 8)].clone())

    @torch.no_grad()
    def start(self) -> None:
        """Set the grid that rounds the observed sample with the least squared error, and round from now on.

        With ``covers_all`` it is the narrowest that holds all that was observed.
        """
        if not self._sample:
            raise RuntimeError("a quantizer saw no values: calibrate before starting it")
        values = torch.cat(self._sample)
        low, high = self._range if self.covers_all else (float(values.min()), float(values.max()))
        low = 0.0 if self.rectified else min(low, 0.0)
        high = max(high, 0.0, low + 1e-5)
        best = (float("inf"), 1.0, 0)
        for shrink in (1.0,) if self.covers_all else torch.linspace(1.0, 0.3, 29).tolist():
            scale = (high - low) * shrink / 255.0
            zero = -128 if self.rectified else round(min(127.0, max(-128.0, -128.0 - low * shrink / scale)))
            rounded = (torch.clamp(torch.round(values / scale) + zero, -128, 127) - zero) * scale
            error = float(((rounded - values) ** 2).mean())
            if error < best[0]:
                best = (error, scale, zero)
        self.log_scale.fill_(math.log(best[1]))
        self.shift.fill_(best[2] / ZERO_POINT_UNIT)
        self.started.fill_(True)
        self._is_started = True
        self._range, self._sample = (0.0, 0.0), []

    @torch.no_grad()
    def grid(self) -> Grid:
        """The grid as it is exported."""
        zero = int(torch.clamp(torch.round(self.shift * ZERO_POINT_UNIT), -128, 127).item())
        return Grid(scale=float(self.log_scale.exp().clamp(min=SMALLEST_SCALE).item()), zero_point=zero)

    def _load_from_state_dict(self, *arguments: object, **keywords: object) -> None:
        super()._load_from_state_dict(*arguments, **keywords)
        self._is_started = None


class DynamicQuantizer(nn.Module):
    """Rounds each token's vector to symmetric int8 with a scale of its own, as engines do while running."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` ``[…, width]``."""
        return fake_quantize_rows(x.float()).to(x.dtype)

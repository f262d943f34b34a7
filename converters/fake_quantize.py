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

import torch
from torch import nn

from .quantized_weights import Grid

SAMPLE = 1 << 16
"""Activation values kept of each tensor for calibration."""

ZERO_POINT_UNIT = 64.0
"""What one unit of a learned shift is, in steps of the grid."""


def fake_quantize_rows(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` ``[…, columns]`` rounded to int8 with one scale for each row; straight-through gradient."""
    with torch.no_grad():
        scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127.0
        rounded = torch.clamp(torch.round(weight / scale), -127, 127) * scale
    return weight + (rounded - weight).detach()


class StaticQuantizer(nn.Module):
    """One activation tensor's affine int8 grid with learned scale and zero point.

    Before :meth:`start` it observes: values pass unchanged and a sample of them is kept.
    With ``rectified`` the tensor is known to be non-negative: its zero point stays at -128.
    """

    log_scale: nn.Parameter
    shift: nn.Parameter

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
        self._is_started: bool | None = None
        self._sample: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` of any shape, rounded to the grid once started."""
        if self._is_started is None:
            self._is_started = bool(self.started)
        if not self._is_started:
            self._observe(x)
            return x
        dtype = x.dtype
        elements = max(1.0, float(x.numel()))
        result: torch.Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            x.float(),
            self.log_scale.exp().clamp(min=1e-6),
            self.shift * ZERO_POINT_UNIT,
            -128,
            127,
            (elements * 127.0) ** -0.5,
        )
        return result.to(dtype)

    @torch.no_grad()
    def _observe(self, x: torch.Tensor) -> None:
        flat = x.detach().float().reshape(-1)
        stride = max(1, flat.numel() // (SAMPLE // 8))
        if sum(part.numel() for part in self._sample) < SAMPLE:
            self._sample.append(flat[::stride].clone())

    @torch.no_grad()
    def start(self) -> None:
        """Set the grid that rounds the observed sample with the least squared error, and round from now on."""
        if not self._sample:
            raise RuntimeError("a quantizer saw no values: calibrate before starting it")
        values = torch.cat(self._sample)
        low = 0.0 if self.rectified else min(float(values.min()), 0.0)
        high = max(float(values.max()), 0.0, low + 1e-5)
        best = (float("inf"), 1.0, 0)
        for shrink in torch.linspace(1.0, 0.3, 29).tolist():
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
        self._sample = []

    @torch.no_grad()
    def grid(self) -> Grid:
        """The grid as it is exported."""
        zero = int(torch.clamp(torch.round(self.shift * ZERO_POINT_UNIT), -128, 127).item())
        return Grid(scale=float(self.log_scale.exp().clamp(min=1e-6).item()), zero_point=zero)

    def _load_from_state_dict(self, *arguments: object, **keywords: object) -> None:
        super()._load_from_state_dict(*arguments, **keywords)  # type: ignore[no-untyped-call]
        self._is_started = None


class DynamicQuantizer(nn.Module):
    """Rounds each token's vector to symmetric int8 with a scale of its own, as engines do while running."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` ``[…, width]``."""
        with torch.no_grad():
            scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127.0
            rounded = torch.clamp(torch.round(x / scale), -127, 127) * scale
        return x + (rounded - x).detach()

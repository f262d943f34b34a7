"""The frozen numbers of a student: integers, scales and floats that every runtime's file takes over unchanged.

This is the one truth between training and export. Grids:

- weights of linear layers: int8 ``[-127, 127]``, symmetric, one scale per output channel;
- embedding tables: int8 ``[-127, 127]``, symmetric, one scale per row;
- weights and tables of ``w4a8-dynamic``: int4 ``[-8, 7]`` in blocks of 32 along the input, symmetric, one positive
  scale per block that is exact both in bfloat16 and in float16, so that every engine's format holds it unchanged; a
  matrix whose input width is no multiple of 32 stays on the int8 grid;
- activations (``w8a8-static``): int8 ``[-128, 127]``, affine, one scale and zero point per tensor, on what
  enters and what leaves each site; ONNX Runtime and OpenVINO take the same grid as uint8 (zero point + 128);
- activations (``w8a8-dynamic``, ``w4a8-dynamic``): each engine's own, taken while running; a site then has no grid;
- biases: float32, or for static sites int32 on ``input scale x weight scale`` (:func:`bias_integers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Grid:
    """An int8 affine grid: ``real = scale * (integer - zero_point)``, integers in [-128, 127]; a float32 scale."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class SiteGrids:
    """Grids of one call of a linear layer: of what enters it and of what leaves it (before any activation but ReLU).

    Where the site's activation is ReLU the output grid is that of the ReLU's result (its zero point is -128),
    so that clamping to the grid is the ReLU.
    """

    input: Grid
    output: Grid


@dataclass(frozen=True)
class QuantizedMatrix:
    """A linear layer: ``integers`` int8 ``[out, in]``, ``scales`` and ``bias`` (or None) float32 ``[out]``."""

    integers: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: NDArray[np.float32] | None

    def dequantized(self) -> NDArray[np.float32]:
        """The weight in float32 ``[out, in]``."""
        return self.integers.astype(np.float32) * self.scales[:, None]


@dataclass(frozen=True)
class BlockMatrix:
    """A linear layer or a table in int4: ``integers`` int8 ``[out, in / 32, 32]`` within [-8, 7].

    ``scales`` float32 ``[out, in / 32]``, positive and exact in bfloat16 and float16; ``bias`` float32 ``[out]`` or
    None (always None for a table).
    """

    integers: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None

    def dequantized(self) -> NDArray[np.float32]:
        """The weight in float32 ``[out, in]``."""
        return (self.integers.astype(np.float32) * self.scales[:, :, None]).reshape(self.integers.shape[0], -1)


@dataclass(frozen=True)
class FloatMatrix:
    """A linear layer left in float32: ``weight`` ``[out, in]``, ``bias`` ``[out]`` or None."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None


@dataclass(frozen=True)
class QuantizedTable:
    """An embedding table: ``integers`` int8 ``[rows, width]``, ``scales`` float32 ``[rows]``."""

    integers: NDArray[np.int8]
    scales: NDArray[np.float32]

    def dequantized(self) -> NDArray[np.float32]:
        """The table in float32 ``[rows, width]``."""
        return self.integers.astype(np.float32) * self.scales[:, None]


@dataclass(frozen=True)
class QuantizedWeights:
    """Everything an exporter needs beside the family's program.

    Attributes:
        precision: ``fp32``, ``w8a8-static``, ``w8a8-dynamic`` or ``w4a8-dynamic``.
        matrices: linear layers by name (the names that the program passes to ``linear``).
        tables: embedding tables by name; a float32 array where the precision is ``fp32``. A table that is a decoder's
            output head too stands here alone, and both read the same numbers.
        vectors: norms and other small parameters by full checkpoint name (``….weight``, ``….bias``), float32.
        sites: activation grids by site, empty unless the precision is static.
        config: the student's checkpoint configuration (``config.json``).
        blocks: linear layers and tables on the int4 grid by name; such a name is in neither of the other two.
    """

    precision: str
    matrices: Mapping[str, QuantizedMatrix | FloatMatrix]
    tables: Mapping[str, QuantizedTable | NDArray[np.float32]]
    vectors: Mapping[str, NDArray[np.float32]]
    sites: Mapping[str, SiteGrids]
    config: Mapping[str, Any]
    blocks: Mapping[str, BlockMatrix] = field(default_factory=dict)


def quantize_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers and scales of a float32 ``[rows, columns]`` on the symmetric grid of its rows' largest magnitudes."""
    scales = np.maximum(np.abs(weight).max(axis=1), 1e-8).astype(np.float32) / np.float32(127)
    integers = np.clip(np.rint(weight / scales[:, None]), -127, 127).astype(np.int8)
    return integers, scales


BLOCK = 32
"""Weights that share a scale on the int4 grid."""


def takes_blocks(width: int) -> bool:
    """Whether a matrix of this input width can be on the int4 grid."""
    return width % BLOCK == 0


def exact_scales(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest positive values, at least 2^-14, that bfloat16 and float16 both hold exactly."""
    bounded = np.clip(scales, np.float32(2.0**-14), np.float32(2.0**15))
    bits = np.ascontiguousarray(bounded, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def round_blocks(weight: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """Integers int8 ``[rows, columns / 32, 32]`` of a float32 ``[rows, columns]`` on the int4 grid of ``scales``."""
    blocks = weight.reshape(*scales.shape, BLOCK)
    integers: NDArray[np.int8] = np.clip(np.rint(blocks / scales[:, :, None]), -8, 7).astype(np.int8)
    return integers


def bias_integers(matrix: QuantizedMatrix, input_grid: Grid) -> NDArray[np.int32]:
    """The bias on the accumulator's grid, int32 ``[out]``: ``rint(bias / (input scale x weight scale))``."""
    if matrix.bias is None:
        return np.zeros(matrix.scales.shape, np.int32)
    scale = matrix.scales.astype(np.float64) * float(input_grid.scale)
    return np.clip(np.rint(matrix.bias / scale), -(2**31) + 1, 2**31 - 1).astype(np.int32)

"""Operators that every ONNX graph of a decoder or an encoder-decoder writes alike: products, norms, activations.

Forms that were the fastest of those tried on ONNX Runtime 1.31: joined products of what reads the same tensor,
SkipSimplifiedLayerNormalization, QuickGelu with alpha 1 as silu.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import StudentError
from ..decoder_graph import Norm
from ..graph import ActivationKind
from ..quantized_weights import QuantizedWeights
from .onnx_decoder_data import ExternalNodeWriter
from .onnx_decoder_products import DecoderProducts
from .onnx_nodes import CONTRIB


@dataclass
class Joined:
    """A product whose results lie side by side; ``cut`` holds them one by one once they were asked for so."""

    name: str
    widths: tuple[int, ...]
    cut: list[str] | None = None


@dataclass(frozen=True)
class Piece:
    """One result of a joined product."""

    joined: Joined
    index: int


Hidden: TypeAlias = str | Piece
"""A float32 tensor ``[1, T, W]``: its name, or a piece of a joined one."""


def packed(parts: tuple[Hidden, ...]) -> str | None:
    """The joined product that consists of just these parts in this order."""
    joined = parts[0].joined if isinstance(parts[0], Piece) else None
    if joined is None or len(joined.widths) != len(parts):
        return None
    in_order = all(
        isinstance(part, Piece) and part.joined is joined and part.index == index for index, part in enumerate(parts)
    )
    return joined.name if in_order else None


class OnnxLayers:
    """Base of the graphs.

    Args:
        weights: the numbers to store.
        writer: collects the graph's nodes.
        products: writes its linear layers and tables.
    """

    def __init__(self, weights: QuantizedWeights, writer: ExternalNodeWriter, products: DecoderProducts) -> None:
        self.weights, self.writer, self.products = weights, writer, products

    def real(self, x: Hidden) -> str:
        """The tensor's own name; a joined product is cut for it."""
        if isinstance(x, str):
            return x
        joined = x.joined
        if joined.cut is None:
            sizes = self.writer.integers(*joined.widths)
            joined.cut = self.writer.node_of("Split", [joined.name, sizes], len(joined.widths), axis=-1)
        return joined.cut[x.index]

    def embedding(self, ids: str, table: str) -> str:
        """See DecoderBuilder."""
        return self.products.rows(ids, table)

    def scale(self, x: Hidden, factor: float) -> str:
        """See DecoderBuilder."""
        return self.writer.node("Mul", [self.real(x), self.writer.constant(np.float32(factor))])

    def mark_layer(self, x: Hidden, layer: int) -> None:
        """See DecoderBuilder."""

    # Layers
    def linear(self, x: Hidden, weight: str, site: str, activation: ActivationKind | None = None) -> str:
        """See DecoderBuilder."""
        name = self.products.product(self.real(x), (weight,), site)
        if activation is None or (activation == "relu" and self.products.rectifies(site)):
            return name
        return self._activation(name, activation)

    def linears(self, x: Hidden, weights: tuple[str, ...], site: str) -> tuple[Hidden, ...]:
        """See DecoderBuilder."""
        if not self.products.can_join(weights):
            return tuple(self.products.product(self.real(x), (name,), site) for name in weights)
        heights = tuple(self.products.height(name) for name in weights)
        joined = Joined(self.products.product(self.real(x), weights, site), heights)
        return tuple(Piece(joined, index) for index in range(len(weights)))

    def joined_linear(self, x: Hidden, weight: str, widths: tuple[int, ...], site: str) -> tuple[Hidden, ...]:
        """See DecoderBuilder."""
        joined = Joined(self.products.product(self.real(x), (weight,), site), widths)
        return tuple(Piece(joined, index) for index in range(len(widths)))

    def _activation(self, x: str, kind: ActivationKind) -> str:
        node = self.writer.node
        if kind == "silu":
            return node("QuickGelu", [x], domain=CONTRIB, alpha=1.0)
        if kind in ("gelu", "gelu_tanh"):
            return node("Gelu", [x], approximate="tanh" if kind == "gelu_tanh" else "none")
        return node({"relu": "Relu", "tanh": "Tanh"}[kind], [x])

    def _norm_inputs(self, norm: Norm) -> list[str]:
        gain = self.vector(f"{norm.name}.weight")
        stored = [self.writer.stored(f"{norm.name}.weight", (gain + np.float32(norm.offset)).astype(np.float32))]
        if norm.kind == "layer":
            stored.append(self.writer.stored(f"{norm.name}.bias", self.vector(f"{norm.name}.bias")))
        return stored

    def vector(self, name: str) -> NDArray[np.float32]:
        """A small parameter by its full name.

        Raises:
            StudentError: there is no such parameter.
        """
        vector = self.weights.vectors.get(name)
        if vector is None:
            raise StudentError(f"the weights hold no vector {name!r}; its name in the family's program is wrong")
        return vector

    def norm(self, x: Hidden, norm: Norm) -> str:
        """See DecoderBuilder."""
        operator = "SimplifiedLayerNormalization" if norm.kind == "rms" else "LayerNormalization"
        return self.writer.node(operator, [self.real(x), *self._norm_inputs(norm)], axis=-1, epsilon=norm.eps)

    def add_norm(self, x: Hidden, update: Hidden, norm: Norm) -> tuple[str, str]:
        """See DecoderBuilder."""
        operator = "SkipSimplifiedLayerNormalization" if norm.kind == "rms" else "SkipLayerNormalization"
        inputs = [self.real(x), self.real(update), *self._norm_inputs(norm)]
        normal, _, _, total = self.writer.node_keeping(
            operator, inputs, (True, False, False, True), domain=CONTRIB, epsilon=norm.eps
        )
        return total, normal

    def head_norm(self, x: Hidden, norm: Norm, heads: int) -> str:
        """See DecoderBuilder."""
        return self.heads_joined(self.norm(self.heads_apart(self.real(x), heads), norm))

    def heads_apart(self, x: str, heads: int) -> str:
        """``[1, T, H * D]`` as ``[1, T, H, D]``."""
        return self.writer.node("Reshape", [x, self.writer.integers(0, 0, heads, -1)])

    def heads_joined(self, x: str) -> str:
        """``[1, T, H, D]`` as ``[1, T, H * D]``."""
        return self.writer.node("Reshape", [x, self.writer.integers(0, 0, -1)])

    def gate(self, gate: Hidden, up: Hidden, kind: ActivationKind) -> str:
        """See DecoderBuilder."""
        return self.writer.node("Mul", [self._activation(self.real(gate), kind), self.real(up)])

    def add(self, a: Hidden, b: Hidden) -> str:
        """See DecoderBuilder."""
        return self.writer.node("Add", [self.real(a), self.real(b)])

    # Heads of widths that an attention's kernel refuses
    def _padded(self, x: str, heads: int, more: int) -> str:
        amounts = self.writer.integers(0, 0, 0, 0, 0, 0, 0, more)
        return self.heads_joined(self.writer.node("Pad", [self.heads_apart(x, heads), amounts]))

    def _cut(self, x: str, heads: int, width: int) -> str:
        first, end, axis = (self.writer.integers(number) for number in (0, width, 3))
        return self.heads_joined(self.writer.node("Slice", [self.heads_apart(x, heads), first, end, axis]))

"""Writes the first half of an encoder-decoder as two ONNX graphs: from the source's tokens to keys and values of it.

- The first takes ``input_ids`` int32 ``[1, S]`` and gives ``states`` float32 ``[1, S, W]``, what leaves the encoder;
- the second takes these and gives ``source.<layer>.key`` and ``source.<layer>.value`` float32 ``[1, H, S, D]`` for each
  layer of the decoder.

In one graph, keys and values would be taken in memory on top of what the encoder's attention leaves behind.

Attention is ONNX's own Attention, the fastest on 512 tokens where relative positions are added to the scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ...errors import StudentError
from ..decoder_graph import Attention, Norm
from ..encoder_decoder_graph import RelativeBias
from ..quantized_weights import QuantizedWeights
from .onnx_decoder_data import ExternalNodeWriter
from .onnx_decoder_layers import Hidden, OnnxLayers
from .onnx_decoder_products import DecoderProducts
from .onnx_encoder_decoder_products import SourceProducts
from .onnx_encoder_decoder_static import StaticProducts

STATES = "states"

STRIP = 16
"""Numbers that are copied at a time where rows of relative positions are put together: a cache line."""


class OnnxSourceGraph(OnnxLayers):
    """Those operators of :class:`~edgescribe.converters.encoder_decoder_graph.EncoderDecoderBuilder` that read.

    Args:
        weights: the numbers to store.

    Attributes:
        reading, keeping: the writers of the first graph and of the second; ``writer`` is the one of them at work.
        kept_heads: heads of the keys and values, and the width of one.
    """

    def __init__(self, weights: QuantizedWeights) -> None:
        self.reading = ExternalNodeWriter()
        self.keeping = ExternalNodeWriter(self.reading)
        super().__init__(weights, self.reading, _products(weights, self.reading))
        self.kept_heads = (0, 0)
        self._encoder = self.products
        self._states: str | None = None
        self._places: str | None = None
        self._biases: dict[RelativeBias, str] = {}
        self.reading.declare_input("input_ids", TensorProto.INT32, [1, "source"])

    def source_ids(self) -> str:
        """See EncoderDecoderBuilder."""
        return "input_ids"

    def source_position_embedding(self, table: str, start: int = 0) -> str:
        """See EncoderDecoderBuilder."""
        if self._places is None:
            node, constant = self.writer.node, self.writer.constant
            end = node("Cast", [node("Size", ["input_ids"])], to=TensorProto.INT32)
            places = node("Range", [constant(np.int32(0)), end, constant(np.int32(1))])
            self._places = node("Unsqueeze", [places, self.writer.integers(0)])
        ids = self._places
        if start:
            ids = self.writer.node("Add", [ids, self.writer.constant(np.int32(start))])
        return self.products.rows(ids, table)

    def linears(self, x: Hidden, weights: tuple[str, ...], site: str) -> tuple[Hidden, ...]:
        """See DecoderBuilder; one product each: cutting hundreds of joined rows apart takes more than it saves."""
        source = self.real(x)
        if site.startswith("decoder."):
            source = self._leaving(source)
        return tuple(self.products.product(source, (name,), site) for name in weights)

    def _leaving(self, x: str) -> str:
        """What leaves the encoder, as the second graph takes it; nodes then go there."""
        if self._states is None:
            shape: list[str | int] = [1, "source", "hidden"]
            self.reading.declare_output(STATES, x, shape)
            self.keeping.declare_input(STATES, TensorProto.FLOAT, shape)
            self.writer, self.products = self.keeping, _products(self.weights, self.keeping)
            self._states = x
        if x != self._states:
            raise StudentError("layers of the decoder keep another thing of the source than what leaves the encoder")
        return STATES

    @property
    def weight_bytes(self) -> int:
        """Bytes of both graphs' linear layers as ONNX Runtime reads them."""
        return self._encoder.packed + (0 if self.products is self._encoder else self.products.packed)

    def add_norm(self, x: Hidden, update: Hidden, norm: Norm) -> tuple[str, str]:
        """See DecoderBuilder; for hundreds of rows two nodes are faster than the one that does both."""
        total = self.add(x, update)
        return total, self.norm(total, norm)

    def source_attention(self, query: Hidden, key: Hidden, value: Hidden, layer: int, attention: Attention) -> str:
        """See EncoderDecoderBuilder."""
        inputs = [self.real(part) for part in (query, key, value)]
        if attention.relative is not None:
            inputs.append(self._relative(attention.relative))
        return self.writer.node(
            "Attention", inputs, name=f"source.{layer}.attention", scale=attention.scale,
            q_num_heads=attention.heads, kv_num_heads=attention.kv_heads,
        )  # fmt: skip

    def keep_source(self, key: Hidden, value: Hidden, layer: int, attention: Attention) -> None:
        """See EncoderDecoderBuilder."""
        self.kept_heads = attention.heads, attention.head_width
        shape: list[str | int] = [1, attention.heads, "source", attention.head_width]
        for part, x in (("key", key), ("value", value)):
            name = f"source.{layer}.{part}"
            apart = self.heads_apart(self.real(x), attention.heads)
            self.writer.node_giving("Transpose", [apart], [name], domain="", name=name, perm=[0, 2, 1, 3])
            self.writer.declare_named_output(name, TensorProto.FLOAT, shape)

    def _relative(self, relative: RelativeBias) -> str:
        """``[1, H, S, S]``, once for all layers that share it.

        A row of it is a stretch of one long row of values by offset. All stretches of :data:`STRIP` numbers that differ
        are stored, and rows put together from these: several times faster than number by number.
        """
        if relative not in self._biases:
            node, integers, constant = self.writer.node, self.writer.integers, self.writer.constant
            first, strips = strips_of(self.vector(relative.table), relative)
            heads, count = strips.shape[:2]
            tokens = node("Shape", ["input_ids"], start=1, end=2)
            length = node("Squeeze", [node("Cast", [tokens], to=TensorProto.INT32)])
            queries = node("Range", [constant(np.int32(0)), length, constant(np.int32(1))])
            end = node("Sub", [length, constant(np.int32(first))])
            keys = node("Range", [constant(np.int32(-first)), end, constant(np.int32(STRIP))])
            apart = node("Sub", [keys, node("Unsqueeze", [queries, integers(1)])])
            places = node("Clip", [apart, constant(np.int32(0)), constant(np.int32(count - 1))])
            rows = node("Gather", [self.writer.stored(f"{relative.table}.strips", strips), places], axis=1)
            flat = node("Reshape", [rows, node("Concat", [integers(1, heads), tokens, integers(-1)], axis=0)])
            self._biases[relative] = node("Slice", [flat, integers(0), tokens, integers(3)])
        return self._biases[relative]


def _products(weights: QuantizedWeights, writer: ExternalNodeWriter) -> DecoderProducts:
    """What writes the linear layers of one of the graphs."""
    if weights.precision == "w8a8-static":
        return StaticProducts(weights, writer, across=True)
    return SourceProducts(weights, writer)


def strips_of(table: NDArray[np.float32], relative: RelativeBias) -> tuple[int, NDArray[np.float32]]:
    """The offset that the first strip begins with, and strips ``[H, n, STRIP]``, each beginning one offset further.

    What lies before the first is like it, and what lies behind the last like that: values differ no more there.
    """
    first, last = -(relative.max_distance + STRIP - 1), relative.max_distance
    offsets = np.arange(first, last + 1)[:, None] + np.arange(STRIP)
    return first, np.ascontiguousarray(table[relative.bucket_of(offsets)].transpose(2, 0, 1), np.float32)

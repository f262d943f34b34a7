"""Writes the second half of an encoder-decoder as an ONNX graph: a decoder's, that attends to the source as well.

Inputs and outputs are those of :mod:`.onnx_decoder_graph`, and ``source.<layer>.key`` and ``source.<layer>.value``,
float32 ``[1, H, S, D]``, as the first half left them.

Cross-attention is MatMul, Softmax, MatMul with each token by itself, ``[T, H, 1, D]``: a third of the time of
MultiHeadAttention for one token (ONNX Runtime 1.31, 512 tokens of source), and the very same numbers for a token
alone and among others. From four tokens at a time on, products of all of them together would be faster.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ..decoder_graph import Attention
from ..encoder_decoder_graph import RelativeBias
from ..quantized_weights import QuantizedWeights
from .onnx_decoder_data import ExternalNodeWriter
from .onnx_decoder_graph import OnnxDecoderGraph
from .onnx_decoder_layers import Hidden
from .onnx_encoder_decoder_static import StaticProducts
from .onnx_nodes import CONTRIB


class OnnxTargetGraph(OnnxDecoderGraph):
    """Those operators of :class:`~edgescribe.converters.encoder_decoder_graph.EncoderDecoderBuilder` that write.

    Args:
        weights: the numbers to store.
        context: the most tokens of a text.
        beside: the first half's graph, whose large constants this one shares.
    """

    def __init__(self, weights: QuantizedWeights, context: int, beside: ExternalNodeWriter) -> None:
        super().__init__(weights, context, beside=beside)
        if weights.precision == "w8a8-static":
            self.products = StaticProducts(weights, self.writer, across=False)
        self._biases: dict[RelativeBias, str] = {}

    def cross_attention(self, query: Hidden, layer: int, attention: Attention) -> str:
        """See EncoderDecoderBuilder."""
        node, heads = self.writer.node, attention.heads
        key, value = f"source.{layer}.key", f"source.{layer}.value"
        for name in (key, value):
            self.writer.declare_input(name, TensorProto.FLOAT, [1, heads, "source", attention.head_width])
        integers, width = self.writer.integers, attention.head_width
        apart = node("Reshape", [self.real(query), integers(-1, heads, 1, width)])
        scores = node("FusedMatMul", [apart, key], domain=CONTRIB, name=f"layer.{layer}.source_scores",
                      transA=0, transB=1, alpha=attention.scale)  # fmt: skip
        context = node("MatMul", [node("Softmax", [scores], axis=-1), value], name=f"layer.{layer}.source_context")
        return node("Reshape", [context, integers(1, -1, heads * width)])

    def add_vector(self, x: Hidden, vector: str) -> str:
        """See EncoderDecoderBuilder."""
        return self.writer.node("Add", [self.real(x), self.writer.stored(vector, self.vector(vector).reshape(-1))])

    def _score_bias(self, attention: Attention) -> str | None:
        relative = attention.relative
        if relative is None:
            return None
        if relative not in self._biases:
            node, integers, constant = self.writer.node, self.writer.integers, self.writer.constant
            distances = np.arange(relative.max_distance + 1)
            values = self.vector(relative.table)[relative.bucket_of(-distances)].T[None]
            table = self.writer.stored(f"{relative.table}.by_distance", np.ascontiguousarray(values, np.float32))
            one = constant(np.int32(1))
            rows = node("Unsqueeze", [node("Range", ["first", "total", one]), integers(1)])
            apart = node("Sub", [rows, node("Range", [constant(np.int32(0)), "total", one])])
            # What stands behind a token is left out by the attention itself; far away, values differ no more.
            places = node("Clip", [apart, constant(np.int32(0)), constant(np.int32(relative.max_distance))])
            self._biases[relative] = node("Gather", [table, places], axis=2)
        return self._biases[relative]

"""Writes a decoder family's program as an ONNX graph with a KV cache, for ONNX Runtime's CPU kernels.

The graph takes T tokens of one text and what its cache holds:

- ``input_ids`` int32 ``[1, T]`` and ``first`` int32, the place of the first of them in the text;
- ``wanted_from`` int64 ``[1]``: from which of the T on logits are wanted;
- ``spare`` int64 ``[6]``: zeros, but S in the last but one place: rows of zeros put behind the T for attention alone.
  ONNX Runtime attends for one token by another kernel than for several, whose results differ in the last bits; with one
  spare row a token gets the very logits that it would get among others. All other kernels treat rows alike, those of
  an int8 cache too: such a graph has no such input;
- ``last`` int32 ``[1]`` and ``total`` int32: the place of the last row in the text, and the number of all, cached ones
  and spare ones included;
- ``past.<layer>.key`` and ``.value`` float32 or int8 ``[1, K, capacity, D]`` and the outputs ``present.<layer>.…``, to
  be bound to the same memory: new keys and values are then written where they belong and nothing is copied;
- ``logits`` float32 ``[1, wanted, V]``.

Attention is GroupQueryAttention with the rotary turn inside, the fastest form of those tried on ONNX Runtime 1.31 (the
others are told in :mod:`.onnx_decoder_layers`). Head widths that it refuses are padded with zeros before it and cut
again behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ...errors import StudentError
from ..decoder_graph import Attention, Rotary
from ..quantized_weights import QuantizedWeights
from .onnx_decoder_data import ExternalNodeWriter
from .onnx_decoder_layers import Hidden, OnnxLayers, packed
from .onnx_decoder_products import DecoderProducts
from .onnx_nodes import CONTRIB

SPARE = 1
"""Most spare rows."""

SCORE_BIAS_AT = 10
"""Which input of GroupQueryAttention is added to the scores."""

INT8_STEP, CACHE_SCALES_AT = 16, 12
INT8_CACHE: dict[str, Any] = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
"""GroupQueryAttention's own: what widths of heads an int8 cache takes, which input its scales are, its attributes."""

WIDTH_STEP, ROTARY_STEP = 8, 16
"""GroupQueryAttention takes head widths that are multiples of the first; with the rotary turn inside, of the second."""


@dataclass(frozen=True)
class CacheScales:
    """The grid of one layer's int8 cache: float32 ``[K, D]`` each, a symmetric scale for each channel."""

    keys: NDArray[np.float32]
    values: NDArray[np.float32]


class OnnxDecoderGraph(OnnxLayers):
    """Implements :class:`~edgescribe.converters.decoder_graph.DecoderBuilder` by appending ONNX nodes.

    Args:
        weights: the numbers to store.
        context: the most tokens of a text; rotary positions are stored up to it.
        cache_scales: grids of the layers' caches in order; None keeps them in float32.
        beside: another graph whose large constants this one shares.

    Raises:
        StudentError: an int8 cache for heads whose width is not a multiple of 16.
    """

    def __init__(
        self,
        weights: QuantizedWeights,
        context: int,
        cache_scales: Sequence[CacheScales] | None = None,
        beside: ExternalNodeWriter | None = None,
    ) -> None:
        writer = ExternalNodeWriter(beside)
        super().__init__(weights, writer, DecoderProducts(weights, writer))
        self.context, self.cache_scales = context, cache_scales
        self.cache_widths: dict[int, tuple[int, int]] = {}
        self.vocabulary = 0
        self._positions: str | None = None
        self._tokens: str | None = None
        self._rotations: dict[Rotary, tuple[str, str]] = {}
        self.writer.declare_input("input_ids", TensorProto.INT32, [1, "tokens"])
        self.writer.declare_input("first", TensorProto.INT32, [])
        self.writer.declare_input("last", TensorProto.INT32, [1])
        self.writer.declare_input("total", TensorProto.INT32, [])
        self.writer.declare_input("wanted_from", TensorProto.INT64, [1])
        if cache_scales is None:
            self.writer.declare_input("spare", TensorProto.INT64, [6])

    # Inputs and outputs
    def token_ids(self) -> str:
        """See DecoderBuilder."""
        return "input_ids"

    def output(self, name: str, value: Hidden) -> None:
        """See DecoderBuilder."""
        self.writer.declare_output(name, self.real(value), [1, "wanted", self.vocabulary])

    # Embeddings
    def position_embedding(self, table: str, start: int = 0) -> str:
        """See DecoderBuilder."""
        ids = self._position_ids()
        if start:
            ids = self.writer.node("Add", [ids, self.writer.constant(np.int32(start))])
        return self.products.rows(ids, table)

    def _position_ids(self) -> str:
        """Places of this call's tokens in the text: int32 ``[1, T]``."""
        if self._positions is None:
            node, constant = self.writer.node, self.writer.constant
            tokens = node("Cast", [node("Size", ["input_ids"])], to=TensorProto.INT32)
            places = node("Range", ["first", node("Add", ["first", tokens]), constant(np.int32(1))])
            self._positions = node("Unsqueeze", [places, self.writer.integers(0)])
        return self._positions

    # Attention
    def attention(self, query: Hidden, key: Hidden, value: Hidden, layer: int, attention: Attention) -> str:
        """See DecoderBuilder."""
        width, rotary = attention.head_width, attention.rotary
        padded = -(-width // WIDTH_STEP) * WIDTH_STEP
        inside = rotary is not None and width % ROTARY_STEP == 0
        parts = (query, key, value)
        whole = padded == width and (inside or rotary is None) and packed(parts)
        if whole:
            inputs = [self.with_spare(whole), "", ""]
        else:
            heads = (attention.heads, attention.kv_heads, attention.kv_heads)
            inputs = [self.real(part) for part in parts]
            if rotary is not None and not inside:
                inputs[:2] = [self._turned(x, rotary, n) for x, n in zip(inputs[:2], heads[:2], strict=True)]
            if padded != width:
                inputs = [self._padded(x, n, padded - width) for x, n in zip(inputs, heads, strict=True)]
            inputs = [self.with_spare(x) for x in inputs]
        inputs += [f"past.{layer}.key", f"past.{layer}.value", "last", "total"]
        if rotary is not None and inside:
            inputs += self._rotation(rotary)
        bias = self._score_bias(attention)
        if bias is not None:
            inputs += [""] * (SCORE_BIAS_AT - len(inputs)) + [bias]
        scales = self._cache_grid(layer, attention)
        if scales:
            inputs += [""] * (CACHE_SCALES_AT - len(inputs)) + scales
        outputs = [f"attention_{layer}", f"present.{layer}.key", f"present.{layer}.value"]
        self.writer.node_giving(
            "GroupQueryAttention", inputs, outputs, domain=CONTRIB, name=f"layer.{layer}.attention",
            num_heads=attention.heads, kv_num_heads=attention.kv_heads, scale=attention.scale,
            do_rotary=int(inside), rotary_interleaved=0, **(INT8_CACHE if scales else {}),
        )  # fmt: skip
        self._declare_cache(layer, attention.kv_heads, padded)
        context = self.without_spare(outputs[0])
        return context if padded == width else self._cut(context, attention.heads, width)

    def _score_bias(self, attention: Attention) -> str | None:
        """What is added to the scores of the rows with the spare ones, ``[1, H, T, total]``; None: nothing."""
        return None

    def _cache_grid(self, layer: int, attention: Attention) -> list[str]:
        """The scales of the layer's keys and values, each stored as ``[K, 1, D]``; none for a float32 cache."""
        if self.cache_scales is None:
            return []
        if attention.head_width % INT8_STEP:
            raise StudentError(
                f"an int8 cache needs heads whose width is a multiple of {INT8_STEP}, and they are "
                f"{attention.head_width} wide: take a float32 cache"
            )
        found, shape = self.cache_scales[layer], (attention.kv_heads, 1, attention.head_width)
        return [
            self.writer.stored(f"cache_scales.{layer}.{part}", scales.astype(np.float32).reshape(shape))
            for part, scales in (("key", found.keys), ("value", found.values))
        ]

    def with_spare(self, x: str) -> str:
        """``x`` ``[1, T, W]`` with the spare rows behind its own."""
        if self.cache_scales is not None:
            return x
        return self.writer.node("Pad", [x, "spare"])

    def without_spare(self, x: str) -> str:
        """The first T rows of ``x``."""
        if self.cache_scales is not None:
            return x
        if self._tokens is None:
            self._tokens = self.writer.node("Shape", ["input_ids"], start=1, end=2)
        first, axis = self.writer.integers(0), self.writer.integers(1)
        return self.writer.node("Slice", [x, first, self._tokens, axis])

    def _declare_cache(self, layer: int, heads: int, width: int) -> None:
        self.cache_widths[layer] = heads, width
        shape: list[str | int] = [1, heads, "capacity", width]
        kind = TensorProto.FLOAT if self.cache_scales is None else TensorProto.INT8
        for part in ("key", "value"):
            self.writer.declare_input(f"past.{layer}.{part}", kind, shape)
            self.writer.declare_named_output(f"present.{layer}.{part}", kind, shape)

    def _rotation(self, rotary: Rotary) -> tuple[str, str]:
        """Cosines and sines of all positions, float32 ``[context, D / 2]`` each, stored once."""
        if rotary not in self._rotations:
            # As training computes them: the product in float32.
            places = np.arange(self.context + SPARE, dtype=np.float32)[:, None]
            angles = places * np.array(rotary.frequencies, np.float32)[None]
            factor, number = np.float32(rotary.factor), len(self._rotations)
            self._rotations[rotary] = (
                self.writer.stored(f"cosines.{number}", np.cos(angles) * factor),
                self.writer.stored(f"sines.{number}", np.sin(angles) * factor),
            )
        return self._rotations[rotary]

    def _turned(self, x: str, rotary: Rotary, heads: int) -> str:
        ids = self.writer.node("Cast", [self._position_ids()], to=TensorProto.INT64)
        return self.writer.node("RotaryEmbedding", [x, *self._rotation(rotary), ids], num_heads=heads)

    # Reading out
    def wanted_tokens(self, x: Hidden) -> str:
        """See DecoderBuilder."""
        end, axis = self.writer.integers(np.iinfo(np.int64).max), self.writer.integers(1)
        return self.writer.node("Slice", [self.real(x), "wanted_from", end, axis])

    def logits(self, x: Hidden, weight: str) -> str:
        """See DecoderBuilder."""
        self.vocabulary = self.products.height(weight)
        return self.products.product(self.real(x), (weight,), "logits")

"""Writes a decoder family's program as an OpenVINO model with a KV cache in state variables.

The model takes T tokens of one text; its variables hold what came before:

- ``input_ids`` and ``position_ids`` int32 ``[1, T]``: the tokens and their places in the text;
- ``wanted`` int32 ``[n]``: which of the T have their logits wanted;
- ``beam_idx`` int32 ``[1]``: nought (part of the form that the CPU plugin fuses);
- ``logits`` float32 ``[1, n, V]``;
- variables ``past.<layer>.key`` and ``.value`` float32 ``[1, K, P, D]``, which grow by T in each run; the plugin stores
  them in what ``KV_CACHE_PRECISION`` says.

The parts are written in the forms that OpenVINO 2026.4's CPU plugin fuses: ``RMS``, ``RoPE``, attention with its cache
(``ScaledDotProductAttention`` that reads and grows the variables), or after the engine's own transformation
``PagedAttention``. So that this transformation can put tokens where the batch was, nothing here depends on which of
the first two axes counts tokens.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from ..decoder_graph import Attention, Rotary
from ..quantized_weights import QuantizedWeights
from .openvino_decoder_layers import OpenVinoDecoderLayers, cut
from .openvino_decoder_products import DecoderProducts
from .openvino_nodes import Node, integers, join_heads, number, split_heads, width_of

RANKS = {"input_ids": 2, "position_ids": 2, "wanted": 1, "beam_idx": 1}
HIDDEN_SCORE = -3.0e38
"""What a query gives tokens that it must not see."""


class OpenVinoDecoderGraph(OpenVinoDecoderLayers):
    """Implements :class:`~edgescribe.converters.decoder_graph.DecoderBuilder` by writing an :class:`openvino.Model`.

    Args:
        weights: the numbers to store.
        context: the most tokens of a text; rotary positions are stored up to it.
        products: what writes the linear layers and tables; None takes those of decoders.

    Attributes:
        cache_widths: key/value heads and their width in each layer's cache.
    """

    def __init__(self, weights: QuantizedWeights, context: int, products: DecoderProducts | None = None) -> None:
        super().__init__(weights, products)
        self._context = context
        self._rotations: dict[Rotary, tuple[Node, Node]] = {}
        self._mask: Node | None = None
        self.cache_widths: dict[int, tuple[int, int]] = {}

    # Inputs and outputs
    def token_ids(self) -> Node:
        """See DecoderBuilder."""
        return self._tokens("input_ids")

    def _tokens(self, name: str) -> Node:
        return self.input(name, (-1,) * RANKS[name])

    def position_embedding(self, table: str, start: int = 0) -> Node:
        """See DecoderBuilder."""
        places = self._tokens("position_ids")
        if start:
            places = ops.add(places, ops.constant(np.array(start, np.int32)))
        return self._products.rows(places, table)

    # Attention
    def attention(self, query: Node, key: Node, value: Node, layer: int, attention: Attention) -> Node:
        """See DecoderBuilder."""
        q = split_heads(query, attention.heads)
        k, v = (split_heads(part, attention.kv_heads) for part in (key, value))
        if attention.rotary is not None:
            q, k = self._turned(q, attention.rotary), self._turned(k, attention.rotary)
        self.cache_widths[layer] = attention.kv_heads, attention.head_width
        keys, values = (
            self._for_all_heads(self._grown(f"past.{layer}.{part}", new, attention), attention)
            for part, new in (("key", k), ("value", v))
        )
        context = ops.scaled_dot_product_attention(q, keys, values, self._causal_mask(), number(attention.scale))
        return join_heads(context)

    def _grown(self, name: str, new: Node, attention: Attention) -> Node:
        """What a variable holds with ``new`` ``[B, K, T, D]`` behind it, which it holds from now on."""
        batch = ops.gather(ops.shape_of(self._tokens("input_ids")), integers([0]), integers(0))
        empty = ops.concat([batch, integers([attention.kv_heads, 0, attention.head_width])], 0)
        shape = ov.PartialShape([-1, attention.kv_heads, -1, attention.head_width])
        held = ops.read_value(ops.broadcast(number(0), empty), name, ov.Type.f32, shape)
        grown = ops.concat([ops.gather(held, self._beams(), integers(0)), new], 2)
        self._sinks.append(ops.assign(grown, name))
        return grown

    def _beams(self) -> Node:
        """Which text each text goes on from, int32 ``[B]``."""
        return self._tokens("beam_idx")

    @staticmethod
    def _for_all_heads(x: Node, attention: Attention) -> Node:
        group = attention.heads // attention.kv_heads
        if group == 1:
            return x
        spread = ops.broadcast(ops.unsqueeze(x, integers([2])), integers([1, 1, group, 1, 1]), None, "BIDIRECTIONAL")
        return ops.reshape(spread, integers([0, attention.heads, -1, attention.head_width]), True)

    def _causal_mask(self) -> Node:
        """What is added to scores, ``[1, 1, T, P + T]``: nought up to the query's own place."""
        if self._mask is None:
            held = ops.unsqueeze(self._held_places(), integers([0, 1, 2]))
            seen = ops.less_equal(held, ops.unsqueeze(self._tokens("position_ids"), integers([1, 3])))
            self._mask = ops.select(seen, number(0), number(HIDDEN_SCORE))
        return self._mask

    def _held_places(self) -> Node:
        """The places of all tokens that attention sees, int32 ``[P + T]``."""
        one, nought = (ops.constant(np.array(value, np.int32)) for value in (1, 0))
        end = ops.add(ops.reduce_max(self._tokens("position_ids"), integers([0, 1]), False), one)
        return ops.range(nought, end, one, "i32")

    def _turned(self, x: Node, rotary: Rotary) -> Node:
        if rotary not in self._rotations:
            # As training computes them: the product in float32.
            angles = np.arange(self._context + 1, dtype=np.float32)[:, None] * np.array(rotary.frequencies, np.float32)
            found = [self._of_places(wave, rotary.factor, len(self._rotations), angles) for wave in ("cos", "sin")]
            self._rotations[rotary] = found[0], found[1]
        cosines, sines = self._rotations[rotary]
        half = len(rotary.frequencies)
        first, second = cut(x, (half, half))
        swapped = ops.concat([ops.multiply(second, number(-1)), first], -1)
        return ops.add(ops.multiply(x, cosines), ops.multiply(swapped, sines))

    def _of_places(self, wave: str, factor: float, index: int, angles: np.ndarray) -> Node:
        """Cosines or sines of the tokens' places, for both halves of a head: ``[B, 1, T, D]``."""
        values = (np.cos(angles) if wave == "cos" else np.sin(angles)) * np.float32(factor)
        table = self._constants.get(f"rotation:{wave}:{index}", values.astype(np.float32))
        half = ops.gather(table, self._tokens("position_ids"), integers(0))
        return ops.unsqueeze(ops.concat([half, half], -1), integers([1]))

    # Reading out
    def wanted_tokens(self, x: Node) -> Node:
        """See DecoderBuilder."""
        in_a_row = ops.reshape(x, integers([1, -1, width_of(x)]), False)
        return ops.gather(in_a_row, self._tokens("wanted"), integers(1))


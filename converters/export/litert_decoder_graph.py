"""A decoder family's program written as one subgraph of a .tflite file: so many tokens at once over a KV cache.

What it takes beside the tokens is made so that the engine has nothing to work out: each token's ``positions``, which
rows of the rotary constants are looked up by, and a ``mask`` that is added to the scores. The caches of a layer are
inputs and outputs of the same names; the caller binds both to the same memory, where they are updated in place.

- Keys are cached as ``[1, K, C, D]``, values transposed, ``[1, K, D, C]``, so that both are the right operand of a
  product with a transposed one, which XNNPACK runs fastest (by 3 to 5 % of a step of SmolLM2-135M, 512 tokens).
- Rotary positions are applied to queries and keys in one go where they lie side by side in a joined product.

What is not of the caches is :class:`~edgescribe.converters.export.litert_decoder_layers.LiteRtLayers`'.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..decoder_graph import Attention, Rotary
from ..quantized_weights import QuantizedWeights
from .litert_decoder_layers import LiteRtLayers, Value
from .litert_flatbuffer import FlatbufferFile

TOKENS, POSITIONS, MASK, LAST = "tokens", "positions", "mask", "last"
"""Names of inputs; the output is ``logits``, and caches are ``key_<layer>`` and ``value_<layer>``."""


@dataclass(eq=False)
class _Cache:
    """A layer's caches as they enter and as they leave."""

    entering: dict[str, int] = field(default_factory=dict)
    leaving: dict[str, int] = field(default_factory=dict)


class LiteRtDecoderGraph(LiteRtLayers):
    """Writes one forward pass for batch 1; implements :class:`~edgescribe.converters.decoder_graph.DecoderBuilder`.

    Args:
        file: the file that the subgraph joins.
        weights: what the constants are taken from.
        tokens: T, the tokens of a call.
        context: the most tokens that the caches can be resized for.
        room: C, the tokens that they hold as written.
        last_only: whether logits are given for one token alone, whose index is the input ``last``.
    """

    def __init__(
        self, file: FlatbufferFile, weights: QuantizedWeights, tokens: int, context: int, room: int, last_only: bool
    ) -> None:
        super().__init__(file, weights, f"decode_{tokens}_of_{context}", tokens)
        self._context, self._room, self._last_only = context, room, last_only
        self._caches: dict[int, _Cache] = {}

    def finish(self) -> None:
        """Close the graph as the signature ``decode_<T>_of_<context>``."""
        inputs, outputs = dict(self._inputs), dict(self._outputs)
        for layer, cache in sorted(self._caches.items()):
            for part, tensor in cache.entering.items():
                inputs[f"{part}_{layer}"] = tensor
                outputs[f"{part}_{layer}"] = cache.leaving[part]
        self._graph.finish(self._name, inputs, outputs)

    # Inputs
    def token_ids(self) -> int:
        """See DecoderBuilder."""
        return self._input(TOKENS, (self._tokens,))

    def _positions(self) -> int:
        return self._input(POSITIONS, (self._tokens,))

    def position_embedding(self, table: str, start: int = 0) -> Value:
        """See DecoderBuilder."""
        return self._placed(table, start, self._positions(), self._context)

    # Attention
    def attention(self, query: Value, key: Value, value: Value, layer: int, attention: Attention) -> Value:
        """See DecoderBuilder."""
        kv_heads, width = attention.kv_heads, attention.head_width
        q, k = self._turned(query, key, attention)
        queries = self._queries(q, attention)
        keys = self._cached("key", layer, self._heads_first(k, kv_heads), (1, kv_heads, self._room, width))
        new = self._tokens_last(value, kv_heads)
        values = self._cached("value", layer, new, (1, kv_heads, width, self._room))
        return self._side_by_side(self._attend(queries, keys, values, self._penalty(attention)))

    def _penalty(self, attention: Attention) -> int:
        """What is added to the scores of each token and each place in the cache."""
        return self._input(MASK, (1, 1, self._tokens, self._room), "float32")

    def _turned(self, query: Value, key: Value, attention: Attention) -> tuple[int, int]:
        """Queries ``[T, H, D]`` and keys ``[T, K, D]``, rotated by their positions."""
        heads, kv_heads, width = attention.heads, attention.kv_heads, attention.head_width
        tokens, ops = self._tokens, self._ops
        adjacent = query.joint >= 0 and query.joint == key.joint and key.start == query.start + query.width
        if attention.rotary is None or not adjacent:
            q, k = self._by_head(query, heads), self._by_head(key, kv_heads)
            if attention.rotary is None:
                return q, k
            return self._rotated(q, attention.rotary), self._rotated(k, attention.rotary)
        both = Value(query.width + key.width, None, query.joint, query.start)
        turned = ops.reshape(self._real(both), (tokens, heads + kv_heads, width))
        turned = self._rotated(turned, attention.rotary)
        q = ops.cut(turned, (0, 0, 0), (tokens, heads, width))
        return q, ops.cut(turned, (0, heads, 0), (tokens, kv_heads, width))

    def _rotated(self, x: int, rotary: Rotary) -> int:
        ops = self._ops
        tokens, heads, width = ops.shape(x)
        cosine, sine = self._once(("rotation", rotary), lambda: self._rotation(rotary))
        first, second = (ops.cut(x, (0, 0, start), (tokens, heads, width // 2)) for start in (0, width // 2))
        swapped = ops.joined([second, first], 2)
        return ops.add(ops.multiply(x, cosine), ops.multiply(swapped, sine))

    def _rotation(self, rotary: Rotary) -> tuple[int, int]:
        """Cosines and signed sines of this call's positions: ``[T, 1, D]`` each."""
        angles = np.arange(self._context, dtype=np.float32)[:, None] * np.asarray(rotary.frequencies, np.float32)[None]
        cosine, sine = (np.float32(rotary.factor) * part(angles) for part in (np.cos, np.sin))
        tables = np.concatenate([cosine, cosine], 1), np.concatenate([-sine, sine], 1)
        shape = (self._tokens, 1, tables[0].shape[1])
        found = [
            self._ops.reshape(self._ops.rows(self._ops.real(name, table), self._positions()), shape)
            for name, table in zip(("cosines", "sines"), tables, strict=True)
        ]
        return found[0], found[1]

    def _cached(self, part: str, layer: int, new: int, shape: tuple[int, ...]) -> int:
        """The layer's cache with what this call adds to it."""
        cache = self._caches.setdefault(layer, _Cache())
        entering = self._graph.tensor(f"{part}_{layer}", shape, "float32")
        leaving = self._ops.updated(entering, new, self._start(part))
        cache.entering[part], cache.leaving[part] = entering, leaving
        return leaving

    def _start(self, part: str) -> int:
        """Where this call's keys or values begin in their cache, one number for each axis."""
        name = f"{part}_start"
        return self._input(name, (4,))

    # Reading out
    def wanted_tokens(self, x: Value) -> Value:
        """See DecoderBuilder."""
        if not self._last_only:
            return x
        return self._value(self._ops.rows(self._real(x), self._input(LAST, (1,))))

"""An encoder-decoder family's two programs as subgraphs of a .tflite file: one reads the source, others write.

What both take beside tokens is made so that the engine has nothing to work out: ``source_mask`` is added to the scores
of the source's tokens, so that padding has no share. Relative positions are looked up by place: ``offsets`` and
``distances`` are indices into one row for each head, whose last element hides what must not be seen. So no table of
all pairs of tokens is in the file.

Keys of the source are kept as ``[1, H, S, D]``, values as ``[1, H, D, S]``, as the decoder's own caches are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...runtimes.litert_decoder_model import HIDDEN
from ..decoder_graph import Attention
from ..encoder_decoder_graph import RelativeBias
from ..quantized_weights import QuantizedWeights
from .litert_decoder_graph import LiteRtDecoderGraph
from .litert_decoder_layers import Value
from .litert_encoder_decoder_static import StaticLayers
from .litert_flatbuffer import FlatbufferFile

SOURCE_TOKENS, SOURCE_POSITIONS, SOURCE_MASK = "source_tokens", "source_positions", "source_mask"
OFFSETS, DISTANCES = "offsets", "distances"
"""Names of inputs; the source's keys and values are ``source_key_<layer>`` and ``source_value_<layer>``."""

PARTS = (4, 3, 2, 1)
"""Into how many groups heads are put that attend to the source one group after the other, so that not all scores, by
far the largest of what is computed, are there at once."""


class LiteRtSourceGraph(StaticLayers):
    """Writes the program that reads a source, for batch 1; the operators of EncoderDecoderBuilder's ``encode``.

    Args:
        file: the file that the subgraph joins.
        weights: what the constants are taken from.
        context: the most tokens of a source.
        room: S as written; the caller may resize inputs for more.
    """

    def __init__(self, file: FlatbufferFile, weights: QuantizedWeights, context: int, room: int) -> None:
        super().__init__(file, weights, f"encode_of_{context}", room, resizable=True)
        self._context = context

    def finish(self) -> None:
        """Close the graph as the signature ``encode_of_<context>``."""
        self._graph.finish(self._name, self._inputs, self._outputs)

    def source_ids(self) -> int:
        """See EncoderDecoderBuilder."""
        return self._input(SOURCE_TOKENS, (self._tokens,))

    def source_position_embedding(self, table: str, start: int = 0) -> Value:
        """See EncoderDecoderBuilder."""
        return self._placed(table, start, self._input(SOURCE_POSITIONS, (self._tokens,)), self._context)

    def source_attention(self, query: Value, key: Value, value: Value, layer: int, attention: Attention) -> Value:
        """See EncoderDecoderBuilder."""
        heads = attention.heads
        parts = next(parts for parts in PARTS if heads % parts == 0)
        queries = self._queries(self._by_head(query, heads), attention)
        keys = self._heads_first(self._by_head(key, heads), heads)
        split = (self._ops.split(x, 1, parts) for x in (queries, keys, self._tokens_last(value, heads)))
        groups = zip(*split, self._penalties(attention, parts), strict=True)
        return self._side_by_side(self._ops.joined([self._attend(*group) for group in groups], 1))

    def _penalties(self, attention: Attention, parts: int) -> list[int]:
        """What is added to the scores of each group of heads."""
        relative = attention.relative
        if relative is None:
            return [self._input(SOURCE_MASK, (1, 1, 1, self._tokens), "float32")] * parts

        def make() -> list[int]:
            rows = by_offset(relative, self._vector(relative.table), np.arange(1 - self._context, self._context))
            offsets = self._input(OFFSETS, (self._tokens, self._tokens))
            named = [self._ops.real(f"{relative.table}/offsets", group) for group in np.split(rows, parts, axis=1)]
            return [self._ops.picked(group, offsets) for group in named]

        return self._once(("relative", relative, parts), make)

    def keep_source(self, key: Value, value: Value, layer: int, attention: Attention) -> None:
        """See EncoderDecoderBuilder."""
        heads = attention.heads
        self._outputs[f"source_key_{layer}"] = self._heads_first(self._by_head(key, heads), heads)
        self._outputs[f"source_value_{layer}"] = self._tokens_last(value, heads)


class LiteRtTargetGraph(StaticLayers, LiteRtDecoderGraph):
    """Writes the program that appends tokens of the target; the operators of EncoderDecoderBuilder's ``decode``.

    Args:
        file, weights, tokens, context, room: as LiteRtDecoderGraph's; logits are given for every token.
        source_room: S as written; the caller may resize inputs for more.
    """

    def __init__(
        self, file: FlatbufferFile, weights: QuantizedWeights, tokens: int, context: int, room: int, source_room: int
    ) -> None:
        super().__init__(file, weights, tokens, context, room, last_only=False)
        self._source_room = source_room

    def _penalty(self, attention: Attention) -> int:
        relative = attention.relative
        if relative is None:
            return super()._penalty(attention)

        def make() -> int:
            rows = self._ops.real(f"{relative.table}/offsets", by_offset(relative, self._vector(relative.table), span))
            return self._ops.picked(rows, self._input(DISTANCES, (self._tokens, self._room)))

        span = -np.arange(self._context)
        return self._once(("relative", relative), make)

    def cross_attention(self, query: Value, layer: int, attention: Attention) -> Value:
        """See EncoderDecoderBuilder."""
        heads, width, room = attention.heads, attention.head_width, self._source_room
        queries = self._queries(self._by_head(query, heads), attention)
        keys = self._input(f"source_key_{layer}", (1, heads, room, width), "float32")
        values = self._input(f"source_value_{layer}", (1, heads, width, room), "float32")
        penalty = self._input(SOURCE_MASK, (1, 1, 1, room), "float32")
        return self._side_by_side(self._attend(queries, keys, values, penalty))

    def add_vector(self, x: Value, vector: str) -> Value:
        """See EncoderDecoderBuilder."""
        constant = self._ops.real(vector, self._vector(vector).reshape(1, -1))
        return self._value(self._ops.add(self._real(x), constant))


def by_offset(
    relative: RelativeBias, table: NDArray[np.float32], offsets: NDArray[np.int64]
) -> NDArray[np.float32]:
    """For each head what is added at each of ``offsets``, then what hides a token: ``[1, H, len(offsets) + 1]``."""
    rows = table[relative.bucket_of(offsets)].T
    return np.concatenate([rows, np.full((len(rows), 1), HIDDEN)], axis=1)[None].astype(np.float32)

"""Writes an encoder-decoder family's two programs as OpenVINO models: one reads the source, one writes about it.

The first is run once for a source, of S tokens and padding up to R:

- ``source_ids`` int32 ``[1, R]``: the tokens, padding behind them; ``source_length`` int32 ``[1]``: S;
- ``source_room`` int32 ``[1]``: places C that the source is kept in, R where it is less;
- ``source.<layer>.key`` and ``.value`` float32 ``[H, 1, C, D]``: what each layer of the decoder attends to;
- ``source.mask`` float32 ``[1, 1, 1, C]``: nought for the S tokens, and what hides the places behind them.

The second takes these as inputs of the same names, and is else a decoder's model with its cache in state variables
(:mod:`~edgescribe.converters.export.openvino_decoder_graph`). The heads of cross-attention stand where batches do, and
the queries where heads do: so the CPU plugin attends for several tokens by the very kernel that it has for one. It
makes such a kernel for each C and number of queries, and keeps them all: hence a C that whoever reads may choose.

Relative positions are gathered into the mask that attention adds to scores, once for all layers, from a table of the
biases by distance whose last column hides. Such a mask leaves attention and its state variables one kernel.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from ...errors import StudentError
from ..decoder_graph import Attention
from ..encoder_decoder_graph import RelativeBias
from ..quantized_weights import QuantizedWeights
from .openvino_decoder_graph import HIDDEN_SCORE, OpenVinoDecoderGraph
from .openvino_decoder_products import DecoderProducts
from .openvino_encoder_decoder_products import SourceProducts
from .openvino_encoder_decoder_static import StaticProducts
from .openvino_nodes import Node, integers, join_heads, number, split_heads, width_of

MASK = "source.mask"
"""What hides the places behind a source, as both models name it."""


class OpenVinoEncoderDecoderGraph(OpenVinoDecoderGraph):
    """Implements :class:`~edgescribe.converters.encoder_decoder_graph.EncoderDecoderBuilder`; one for each program.

    Args:
        weights: the numbers to store.
        context: the most tokens of a target.
        reads: whether it is to be the program that reads the source.

    Attributes:
        source_widths: heads and their width of what is kept of the source, by the decoder's layers.
    """

    def __init__(self, weights: QuantizedWeights, context: int, reads: bool) -> None:
        products: DecoderProducts | None = SourceProducts(weights) if reads else None
        if weights.precision == "w8a8-static":
            products = StaticProducts(weights)
        super().__init__(weights, context, products)
        self._vectors = weights.vectors
        self._biases: dict[RelativeBias | None, Node] = {}
        self._source_places: Node | None = None
        self._kept: Node | None = None
        self.source_widths: dict[int, tuple[int, int]] = {}

    # Reading the source
    def source_ids(self) -> Node:
        """See EncoderDecoderBuilder."""
        return self.input("source_ids", (1, -1))

    def source_position_embedding(self, table: str, start: int = 0) -> Node:
        """See EncoderDecoderBuilder."""
        last = ops.constant(np.array(self._products.height(table) - 1, np.int32))  # padding may reach beyond it
        places = ops.add(self._places(), ops.constant(np.array(start, np.int32)))
        return self._products.rows(ops.unsqueeze(ops.minimum(places, last), integers(0)), table)

    def source_attention(self, query: Node, key: Node, value: Node, layer: int, attention: Attention) -> Node:
        """See EncoderDecoderBuilder."""
        q, k, v = (split_heads(part, attention.heads) for part in (query, key, value))
        if attention.relative not in self._biases:
            self._biases[attention.relative] = self._source_mask(attention.relative)
        mask = self._biases[attention.relative]
        return join_heads(ops.scaled_dot_product_attention(q, k, v, mask, number(attention.scale)))

    def keep_source(self, key: Node, value: Node, layer: int, attention: Attention) -> None:
        """See EncoderDecoderBuilder."""
        if self._kept is None:
            room = _counted(ops.maximum(self.input("source_room", (1,)), self._rows()))
            hidden = ops.select(ops.less(room, self._source_length()), number(0), number(HIDDEN_SCORE))
            self.output(MASK, ops.unsqueeze(hidden, integers([0, 1, 2])))
            # Behind the last row it stands again, hidden.
            self._kept = ops.minimum(room, ops.subtract(self._rows(), ops.constant(np.ones(1, np.int32))))
        for part, found in (("key", key), ("value", value)):
            kept = ops.gather(found, self._kept, integers(1))
            self.output(_name(layer, part), split_heads(kept, attention.heads, (2, 0, 1, 3)))

    def _rows(self) -> Node:
        """R, int32 ``[1]``."""
        return ops.gather(ops.shape_of(self.source_ids(), "i32"), integers([1]), integers(0))

    def _source_length(self) -> Node:
        return self.input("source_length", (1,))

    def _places(self) -> Node:
        """The places of the source's tokens and padding, int32 ``[R]``."""
        if self._source_places is None:
            self._source_places = _counted(self._rows())
        return self._source_places

    def _source_mask(self, relative: RelativeBias | None) -> Node:
        """What is added to scores of the source's tokens: ``[1, H, R, R]``, or ``[1, 1, 1, R]`` for no positions."""
        keys = ops.unsqueeze(self._places(), integers(0))
        seen = ops.less(keys, ops.unsqueeze(self._source_length(), integers(1)))
        if relative is None:
            return ops.unsqueeze(ops.select(seen, number(0), number(HIDDEN_SCORE)), integers([0, 1]))
        far = relative.max_distance
        offsets = ops.subtract(keys, ops.unsqueeze(self._places(), integers(1)))
        columns = ops.add(_within(offsets, -far, far), ops.constant(np.array(far, np.int32)))
        return self._by_distance(relative, np.arange(-far, far + 1), columns, seen)

    def _by_distance(self, relative: RelativeBias, offsets: np.ndarray, columns: Node, seen: Node) -> Node:
        """``[1, H, queries, keys]``: for what is ``seen`` the bias of ``offsets[columns]``, else what hides."""
        found = self._vectors.get(relative.table)
        if found is None:
            raise StudentError(f"the weights hold no vector {relative.table!r}; its name in the program is wrong")
        biases = np.asarray(found, np.float32)[relative.bucket_of(offsets)].T
        hidden = np.full((len(biases), 1), HIDDEN_SCORE, np.float32)
        table = self._constants.get(f"biases:{relative.table}", np.concatenate([biases, hidden], 1))
        last = ops.constant(np.array(len(offsets), np.int32))
        return ops.unsqueeze(ops.gather(table, ops.select(seen, columns, last), integers(1)), integers(0))

    # Writing
    def attention(self, query: Node, key: Node, value: Node, layer: int, attention: Attention) -> Node:
        """See DecoderBuilder."""
        # All layers of a decoder have the same positions: the mask is made at the first.
        if self._mask is None and attention.relative is not None:
            self._mask = self._target_mask(attention.relative)
        return super().attention(query, key, value, layer, attention)

    def _target_mask(self, relative: RelativeBias) -> Node:
        """What is added to scores of the target's tokens, ``[1, H, T, P + T]``."""
        places = self._tokens("position_ids")
        distances = ops.subtract(ops.reshape(places, integers([-1, 1]), False), self._held_places())
        columns = _within(distances, 0, relative.max_distance)
        seen = ops.greater_equal(distances, ops.constant(np.array(0, np.int32)))
        return self._by_distance(relative, -np.arange(relative.max_distance + 1), columns, seen)

    def cross_attention(self, query: Node, layer: int, attention: Attention) -> Node:
        """See EncoderDecoderBuilder."""
        heads, width = attention.heads, attention.head_width
        self.source_widths[layer] = heads, width
        apart = ops.reshape(query, integers([-1, heads, 1, width]), False)
        key, value = (self.input(_name(layer, part), (heads, 1, -1, width), ov.Type.f32) for part in ("key", "value"))
        mask = self.input(MASK, (1, 1, 1, -1), ov.Type.f32)
        context = ops.scaled_dot_product_attention(
            ops.transpose(apart, integers([1, 0, 2, 3])), key, value, mask, number(attention.scale)
        )
        return ops.reshape(ops.transpose(context, integers([1, 0, 2, 3])), integers([1, -1, width_of(query)]), False)

    def add_vector(self, x: Node, vector: str) -> Node:
        """See EncoderDecoderBuilder."""
        return ops.add(x, self._products.vector(vector))


def _counted(count: Node) -> Node:
    """0, 1, … below ``count`` ``[1]``."""
    nought, one = (ops.constant(np.array(value, np.int32)) for value in (0, 1))
    return ops.range(nought, ops.squeeze(count, integers([0])), one, "i32")


def _name(layer: int, part: str) -> str:
    return f"source.{layer}.{part}"


def _within(x: Node, low: int, high: int) -> Node:
    """int32 values held within bounds."""
    bounds = (ops.constant(np.array(value, np.int32)) for value in (low, high))
    return ops.minimum(ops.maximum(x, next(bounds)), next(bounds))

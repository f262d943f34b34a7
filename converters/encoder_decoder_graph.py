"""The operators in which an encoder-decoder family (T5, BART, Marian) is written, once, for training and every runtime.

They are those of :mod:`~edgescribe.converters.decoder_graph` and a few more. A family writes two programs
(:class:`SourceAndTarget`): ``encode`` reads the source text and leaves behind keys and values for each layer of the
decoder (:meth:`EncoderDecoderBuilder.keep_source`), once for a text; ``decode`` is a decoder's program whose layers
also attend to these (:meth:`EncoderDecoderBuilder.cross_attention`). Training runs the one after the other; an
exporter writes each as a graph of its own, with the weights that both name (a shared embedding table) stored once.

Shapes as in decoder_graph, and S tokens of the source. While ``encode`` runs, T stands for S.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .decoder_graph import Attention, DecoderBuilder
from .graph import Value

if TYPE_CHECKING:
    from .anatomy import Shape


@dataclass(frozen=True)
class SourceAndTarget:
    """The two programs of an encoder-decoder family; each takes a builder and the student's sizes."""

    encode: Callable[[EncoderDecoderBuilder, Shape], None]
    decode: Callable[[EncoderDecoderBuilder, Shape], None]


@dataclass(frozen=True)
class RelativeBias:
    """T5's relative positions: what is added to the score of a query and a key, by how far they stand apart.

    Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (2020).
    ``table`` is a float parameter ``[buckets, H]`` by its full checkpoint name; ``bidirectional`` is true in the
    encoder, where keys behind a query have buckets of their own.
    """

    table: str
    buckets: int
    max_distance: int
    bidirectional: bool

    def bucket_of(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bucket of each offset (place of the key less place of the query); any shape."""
        buckets, start = self.buckets, np.zeros(offsets.shape, np.int64)
        if self.bidirectional:
            buckets //= 2
            start = np.where(offsets > 0, buckets, 0).astype(np.int64)
            distance = np.abs(offsets)
        else:
            distance = np.maximum(-offsets, 0)
        exact = buckets // 2
        # In float32, as the checkpoint's own code computes it: rounding decides at the borders of buckets.
        ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
            math.log(self.max_distance / exact)
        )
        far = np.minimum(exact + (ratio * np.float32(buckets - exact)).astype(np.int64), buckets - 1)
        return start + np.where(distance < exact, distance, far)


class EncoderDecoderBuilder(DecoderBuilder, Protocol):
    """Builds, or runs, the passes of an encoder-decoder. Every operator returns a new value.

    In ``encode``, :meth:`mark_layer` counts the encoder's layers; in ``decode`` it counts on behind them: the
    decoder's embeddings are ``encoder layers + 1``.
    """

    # Reading the source (in encode)
    def source_ids(self) -> Value:
        """The source's tokens: integers ``[B, S]``; padding, if there is any, stands behind them."""
        ...

    def source_position_embedding(self, table: str, start: int = 0) -> Value:
        """Rows ``start … start + S - 1`` of ``table``: ``[1, S, W]``."""
        ...

    def source_attention(self, query: Value, key: Value, value: Value, layer: int, attention: Attention) -> Value:
        """Attention of the source's tokens to all of them but padding: ``[B, S, H*D]`` each → ``[B, S, H*D]``.

        Scores are ``q · k * scale`` plus ``attention.relative`` where there is one.
        """
        ...

    def keep_source(self, key: Value, value: Value, layer: int, attention: Attention) -> None:
        """Leave keys and values ``[B, S, H*D]`` of the source for layer ``layer`` of the decoder."""
        ...

    # Writing (in decode)
    def cross_attention(self, query: Value, layer: int, attention: Attention) -> Value:
        """Attention of ``[B, T, H*D]`` to what :meth:`keep_source` left for ``layer``, padding left out."""
        ...

    def add_vector(self, x: Value, vector: str) -> Value:
        """``x`` plus the float parameter ``vector`` by its full name, flattened to ``[W]`` (a bias on logits)."""
        ...

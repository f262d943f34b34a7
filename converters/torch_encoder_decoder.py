"""Runs an encoder-decoder family's programs in torch over whole texts, in float or with fake quantisation.

The model that is trained, and what exported artifacts are tested against: every token of the target is wanted, and
nothing is cached between runs. Padding stands behind the tokens of source and target.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as functional

from .decoder_graph import Attention
from .encoder_decoder_graph import RelativeBias
from .fake_quantize import StaticQuantizer
from .torch_decoder import TorchDecoder
from .torch_graph import Recording


class TorchEncoderDecoder(TorchDecoder):
    """A student's programs over torch tensors.

    Implements :class:`~edgescribe.converters.encoder_decoder_graph.EncoderDecoderBuilder`. Arguments and running are
    as of :class:`~edgescribe.converters.torch_graph.TorchGraph`. Feeds: ``source_ids`` and ``source_mask`` ``[B, S]``
    (the mask may be left out: no padding), ``input_ids`` ``[B, T]``: the target, one place to the right behind the
    token that starts it (and ``attention_mask`` ``[B, T]`` for whoever counts its tokens). It gives ``logits``
    ``[B, T, V]``.
    """

    precisions = ("fp32", "w8a8-static", "w8a8-dynamic", "w4a8-dynamic")

    _reading = False

    @staticmethod
    def _few_tokens() -> dict[str, torch.Tensor]:
        ids = torch.zeros((1, 4), dtype=torch.long)
        return {"source_ids": ids, "input_ids": ids}

    def run(self, feeds: Mapping[str, torch.Tensor], recording: Recording | None = None) -> dict[str, torch.Tensor]:
        """See TorchGraph."""
        self._sources: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._biases: dict[tuple[str, int], torch.Tensor] = {}
        try:
            return super().run(feeds, recording)
        finally:
            self._sources, self._biases = {}, {}

    def _tokens_mask(self) -> torch.Tensor | None:
        return self._feeds.get("source_mask" if self._reading else "attention_mask")

    # Reading the source
    def source_ids(self) -> torch.Tensor:
        """See EncoderDecoderBuilder."""
        self._reading = True
        return self._feeds["source_ids"]

    def source_position_embedding(self, table: str, start: int = 0) -> torch.Tensor:
        """See EncoderDecoderBuilder."""
        return self._positions(table, slice(start, start + self._feeds["source_ids"].shape[1]))

    def source_attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, attention: Attention
    ) -> torch.Tensor:
        """See EncoderDecoderBuilder."""
        tokens = query.shape[1]
        bias = self._source_penalty(query.dtype)
        if attention.relative is not None:
            relative = self._relative(attention.relative, tokens)
            bias = relative if bias is None else relative + bias
        return self._attend(query, key, value, bias, attention)

    def keep_source(self, key: torch.Tensor, value: torch.Tensor, layer: int, attention: Attention) -> None:
        """See EncoderDecoderBuilder."""
        self._sources[layer] = (key, value)

    # Writing
    def token_ids(self) -> torch.Tensor:
        """See DecoderBuilder."""
        self._reading = False
        return super().token_ids()

    def attention(  # type: ignore[override]
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, attention: Attention
    ) -> torch.Tensor:
        """See DecoderBuilder."""
        if attention.relative is None:
            return super().attention(query, key, value, layer, attention)
        tokens = query.shape[1]
        later = torch.ones((tokens, tokens), dtype=torch.bool, device=query.device).triu(1)
        bias = self._relative(attention.relative, tokens).masked_fill(later, -1e4)
        return self._attend(query, key, value, bias, attention)

    def cross_attention(self, query: torch.Tensor, layer: int, attention: Attention) -> torch.Tensor:
        """See EncoderDecoderBuilder."""
        key, value = self._sources[layer]
        return self._attend(query, key, value, self._source_penalty(query.dtype), attention)

    def logits(self, x: torch.Tensor, weight: str) -> torch.Tensor:
        """See DecoderBuilder."""
        found = super().logits(x, weight)
        if self._creating and self.precision == "w8a8-static":
            leaving = self.outputs["logits"]
            if isinstance(leaving, StaticQuantizer):
                leaving.covers_all = True
        return found

    # Scores
    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        attention: Attention,
    ) -> torch.Tensor:
        q, k, v = (self._split_heads(part, attention.heads) for part in (query, key, value))
        if bias is not None:
            bias = bias.to(q.dtype).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        context = functional.scaled_dot_product_attention(q, k, v, bias, scale=attention.scale)
        return context.transpose(1, 2).reshape(query.shape[0], query.shape[1], -1)

    def _source_penalty(self, dtype: torch.dtype) -> torch.Tensor | None:
        """``[B, 1, 1, S]``: what is added to scores of the source's padding; None: there is none."""
        mask = self._feeds.get("source_mask")
        return None if mask is None else ((1 - mask.to(torch.float32)) * -1e4)[:, None, None, :].to(dtype)

    def _relative(self, relative: RelativeBias, tokens: int) -> torch.Tensor:
        """``[1, H, tokens, tokens]``, once for all layers that share it."""
        key = (relative.table, tokens)
        if key not in self._biases:
            places = torch.arange(tokens)
            buckets = torch.from_numpy(relative.bucket_of((places[None, :] - places[:, None]).numpy()))
            self._biases[key] = self.weight(relative.table)[buckets].permute(2, 0, 1)[None]
        return self._biases[key]

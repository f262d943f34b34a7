"""Runs a decoder family's program in torch over whole texts, in float or with fake quantisation.

Every token is wanted and nothing is cached: this is the model that is trained, and what exported artifacts are
tested against. Padding stands behind a text's tokens, where causal attention never looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as functional
from torch import nn

from .decoder_graph import Attention, Norm, Rotary
from .fake_quantize import exact_scales, fake_quantize_blocks, largest_magnitudes
from .graph import ActivationKind
from .quantized_weights import takes_blocks
from .student import Student
from .torch_graph import ACTIVATIONS, TorchGraph, as_matrix

PLAIN_ATTENTION = 512
"""Tokens up to which training computes attention by plain products: beyond, all scores take too much memory."""


def graph_of(student: Student, precision: str = "fp32", dropout: float = 0.0) -> TorchGraph:
    """A student's program in torch: the class of graph that its family's operators ask for."""
    from .torch_encoder_decoder import TorchEncoderDecoder

    kinds = {"encoder": TorchGraph, "decoder": TorchDecoder, "encoder-decoder": TorchEncoderDecoder}
    return kinds[student.anatomy.kind](student, precision, dropout)


class TorchDecoder(TorchGraph):
    """A student's program over torch tensors; implements :class:`~edgescribe.converters.decoder_graph.DecoderBuilder`.

    Arguments and running are as of :class:`~edgescribe.converters.torch_graph.TorchGraph`; the only feed it reads is
    ``input_ids`` ``[B, T]``, and it gives ``logits`` ``[B, T, V]``.
    """

    precisions: tuple[str, ...] = ("fp32", "w8a8-dynamic", "w4a8-dynamic")

    def __init__(self, student: Student, precision: str = "fp32", dropout: float = 0.0) -> None:
        self._observed: dict[str, torch.Tensor] | None = None
        super().__init__(student, precision, dropout)
        self.log_scales = nn.ParameterDict()
        if precision == "w4a8-dynamic":
            for name, parameter in self.layout.items():
                if parameter.kind in ("matrix", "table"):
                    weight = as_matrix(self.weight(name).detach(), parameter)
                    if takes_blocks(weight.shape[1]):
                        self.log_scales[self._key(name)] = nn.Parameter(largest_magnitudes(weight).log())

    # The int4 grid. Scales are learned along with the weights, as logarithms, so that they stay positive.
    def block_scales(self, name: str) -> torch.Tensor | None:
        """The scales ``[out, in / 32]`` of a matrix or table by its path, exact as exported; None: not on that grid."""
        full = name if name in self.layout else f"{name}.weight"
        key = self._key(full)
        # An attribute of a part that __init__ has not made yet, while the sites are being found.
        scales = self._modules.get("log_scales")
        return exact_scales(scales[key]) if isinstance(scales, nn.ParameterDict) and key in scales else None

    def set_block_scales(self, name: str, scales: torch.Tensor) -> None:
        """Put other scales ``[out, in / 32]``, positive, in place of a matrix's or table's."""
        full = name if name in self.layout else f"{name}.weight"
        with torch.no_grad():
            self.log_scales[self._key(full)].copy_(scales.log())

    def _on_grid(self, weight: torch.Tensor, names: tuple[str, ...] = ()) -> torch.Tensor:
        scales = [self.block_scales(name) for name in names]
        present = [each for each in scales if each is not None]
        if present and len(present) == len(names):
            return fake_quantize_blocks(weight, torch.cat(present) if len(present) > 1 else present[0])
        return super()._on_grid(weight)

    @contextmanager
    def observing(self) -> Iterator[dict[str, torch.Tensor]]:
        """While it lasts, sums by matrix, over tokens, of the squares of what enters it: float32 ``[in]``."""
        self._observed = {}
        try:
            yield self._observed
        finally:
            self._observed = None

    def _look_at(self, names: tuple[str, ...], x: torch.Tensor) -> None:
        if self._observed is not None:
            mask = self._tokens_mask()
            rows = x.detach().float() if mask is None else x.detach().float()[mask.bool()]
            energy = rows.square().reshape(-1, x.shape[-1]).sum(0)
            for name in names:
                self._observed[name] = self._observed.get(name, torch.zeros(())) + energy

    def _tokens_mask(self) -> torch.Tensor | None:
        """Which tokens of the pass that is run are no padding: ``[B, T]``; None: all."""
        return self._feeds.get("attention_mask")

    # Embeddings
    def embedding(self, ids: torch.Tensor, table: str) -> torch.Tensor:
        """See DecoderBuilder."""
        scales = self.block_scales(table) if self.precision == "w4a8-dynamic" else None
        if scales is None:
            return super().embedding(ids, table)
        rows = functional.embedding(ids, self.weight(f"{table}.weight"))
        return fake_quantize_blocks(rows, functional.embedding(ids, scales))

    def position_embedding(self, table: str, start: int = 0) -> torch.Tensor:
        """See DecoderBuilder."""
        return self._positions(table, slice(start, start + self._feeds["input_ids"].shape[1]))

    def _positions(self, table: str, kept: slice) -> torch.Tensor:
        scales = self.block_scales(table) if self.precision == "w4a8-dynamic" else None
        rows = self.weight(f"{table}.weight")[kept]
        return (self._rows(rows) if scales is None else fake_quantize_blocks(rows, scales[kept]))[None]

    def scale(self, x: torch.Tensor, factor: float) -> torch.Tensor:
        """See DecoderBuilder."""
        return x * factor

    # Layers
    def joined_linear(
        self, x: torch.Tensor, weight: str, widths: tuple[int, ...], site: str
    ) -> tuple[torch.Tensor, ...]:
        """See DecoderBuilder."""
        return torch.split(self.linear(x, weight, site), list(widths), dim=-1)

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """See DecoderBuilder."""
        if self.norm_statistics is not None:
            mask = self._tokens_mask()
            mask = torch.ones(x.shape[:2]) if mask is None else mask
            self.norm_statistics.add(norm.name, x, norm.eps, mask, norm.kind == "layer", norm.offset)
        return self._normalized(x, norm)

    def _normalized(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        if norm.kind == "layer":
            weight, bias = self.weight(f"{norm.name}.weight"), self.weight(f"{norm.name}.bias")
            return functional.layer_norm(x, (x.shape[-1],), weight, bias, norm.eps)
        gain = self.weight(f"{norm.name}.weight") + norm.offset
        return functional.rms_norm(x, (x.shape[-1],), gain.to(x.dtype), norm.eps)

    def add_norm(self, x: torch.Tensor, update: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        """See DecoderBuilder."""
        total = x + functional.dropout(update, self.dropout, self.training)
        return total, self.norm(total, norm)

    def head_norm(self, x: torch.Tensor, norm: Norm, heads: int) -> torch.Tensor:
        """See DecoderBuilder."""
        return self._normalized(x.reshape(*x.shape[:-1], heads, -1), norm).reshape(x.shape)

    def gate(self, gate: torch.Tensor, up: torch.Tensor, kind: ActivationKind) -> torch.Tensor:
        """See DecoderBuilder."""
        return ACTIVATIONS[kind](gate) * up

    def attention(  # type: ignore[override]
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, attention: Attention
    ) -> torch.Tensor:
        """See DecoderBuilder."""
        q = self._split_heads(query, attention.heads)
        k, v = (self._split_heads(part, attention.kv_heads) for part in (key, value))
        if attention.rotary is not None:
            turned = rotation(attention.rotary, query.shape[1]).to(q.dtype)
            q, k = rotate(q, turned), rotate(k, turned)
        if torch.is_grad_enabled() and q.device.type == "cpu" and query.shape[1] <= PLAIN_ATTENTION:
            context = plain_attention(q, k, v, attention.scale)
        else:
            grouped = attention.kv_heads != attention.heads
            context = functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=attention.scale, enable_gqa=grouped
            )
        return context.transpose(1, 2).reshape(query.shape[0], query.shape[1], -1)

    # Reading out
    def wanted_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """See DecoderBuilder."""
        return x

    def logits(self, x: torch.Tensor, weight: str) -> torch.Tensor:
        """See DecoderBuilder."""
        return self.linear(x, weight, "logits")


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention by two products, all query heads that share a key head in one of them.

    ``q`` ``[B, H, T, D]``, ``k`` and ``v`` ``[B, K, T, D]``; the result is like ``q``. torch's fused kernel keeps no
    scores, but on CPUs its backward pass takes two to four times as long in bfloat16.
    """
    batch, heads, tokens, width = q.shape
    groups = k.shape[1]
    rows = (q * scale).reshape(batch, groups, heads // groups * tokens, width)
    scores = (rows @ k.transpose(-1, -2)).reshape(batch, heads, tokens, tokens)
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
    shares = torch.softmax(scores.masked_fill(later, -math.inf), -1).to(v.dtype)
    return (shares.reshape(batch, groups, -1, tokens) @ v).reshape(q.shape)


def rotation(rotary: Rotary, tokens: int) -> torch.Tensor:
    """Cosines and sines of positions ``0 … tokens - 1``: ``[2, tokens, D / 2]``."""
    angles = torch.arange(tokens, dtype=torch.float32)[:, None] * torch.tensor(rotary.frequencies)[None]
    return torch.stack([angles.cos(), angles.sin()]) * rotary.factor


def rotate(x: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
    """``x`` ``[B, H, T, D]`` with the two halves of each head turned."""
    cosine, sine = turned[0], turned[1]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)

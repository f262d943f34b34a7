"""Runs a decoder family's program in torch over whole texts, in float or with fake quantisation.

Every token is wanted and nothing is cached: this is the model that is trained, and what exported artifacts are
tested against. Padding stands behind a text's tokens, where causal attention never looks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from .decoder_graph import Attention, Norm, Rotary
from .fake_quantize import fake_quantize_blocks
from .graph import ActivationKind
from .quantized_weights import takes_blocks
from .student import Student
from .torch_graph import ACTIVATIONS, TorchGraph


def graph_of(student: Student, precision: str = "fp32", dropout: float = 0.0) -> TorchGraph:
    """A student's program in torch: a :class:`TorchDecoder` for a decoder, a :class:`TorchGraph` for an encoder."""
    kind = TorchDecoder if student.anatomy.kind == "decoder" else TorchGraph
    return kind(student, precision, dropout)


class TorchDecoder(TorchGraph):
    """A student's program over torch tensors; implements :class:`~edgescribe.converters.decoder_graph.DecoderBuilder`.

    Arguments and running are as of :class:`~edgescribe.converters.torch_graph.TorchGraph`; the only feed it reads is
    ``input_ids`` ``[B, T]``, and it gives ``logits`` ``[B, T, V]``.
    """

    precisions = ("fp32", "w8a8-dynamic", "w4a8-dynamic")

    def _on_grid(self, weight: torch.Tensor) -> torch.Tensor:
        if self.precision == "w4a8-dynamic" and takes_blocks(weight.shape[-1]):
            return fake_quantize_blocks(weight)
        return super()._on_grid(weight)

    # Embeddings
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
            mask = self._feeds.get("attention_mask", torch.ones(x.shape[:2]))
            self.norm_statistics.add(norm.name, x, norm.eps, mask, centred=norm.kind == "layer")
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


def rotation(rotary: Rotary, tokens: int) -> torch.Tensor:
    """Cosines and sines of positions ``0 … tokens - 1``: ``[2, tokens, D / 2]``."""
    angles = torch.arange(tokens, dtype=torch.float32)[:, None] * torch.tensor(rotary.frequencies)[None]
    return torch.stack([angles.cos(), angles.sin()]) * rotary.factor


def rotate(x: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
    """``x`` ``[B, H, T, D]`` with the two halves of each head turned."""
    cosine, sine = turned[0], turned[1]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)

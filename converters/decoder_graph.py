"""The operators in which a decoder family's forward pass is written, once, for training and for every runtime.

The counterpart of :mod:`~edgescribe.converters.graph` for causal language models: a family writes
``forward(graph, shape, task)`` with these operators;
:class:`~edgescribe.converters.torch_decoder.TorchDecoder` runs it over whole texts, and the exporters write it as a
graph with a KV cache. Operators are as large as what engines fuse (grouped attention with rotary positions, residual
norm), so that each exporter can pick its engine's best form.

Names of weights and sites are as in :mod:`~edgescribe.converters.graph`.
Shapes: B batch, T tokens of this call, P tokens in the cache, W width of a tensor's last axis, H heads, K key/value
heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from .graph import ActivationKind, Value

if TYPE_CHECKING:
    from .encoder_decoder_graph import RelativeBias


@dataclass(frozen=True)
class Norm:
    """A normalisation over the last axis by its path in the checkpoint (without ``.weight``).

    ``rms``: ``x / sqrt(mean(x²) + eps) * (weight + offset)`` (Zhang and Sennrich, "Root Mean Square Layer
    Normalization", 2019); ``layer``: layer normalisation with ``.weight`` and ``.bias``, ``offset`` being 0.
    """

    name: str
    eps: float
    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al., "RoFormer", 2021) in the half-split form of Llama.

    Unit i of the first half of a head and unit i of its second are turned by ``position * frequencies[i]`` (radians
    a token); ``frequencies`` has D / 2 values, any scaling of the context worked in; ``factor`` multiplies both sine
    and cosine (YaRN's, 1 otherwise).
    """

    frequencies: tuple[float, ...]
    factor: float = 1.0


@dataclass(frozen=True)
class Attention:
    """The sizes of one attention: head h reads key/value head ``h // (heads // kv_heads)``.

    Scores are ``q · k * scale``; where it is causal, a token attends to itself and to all before it. ``relative`` is
    added to the scores (encoder-decoders alone; such attention has no ``rotary``).
    """

    heads: int
    kv_heads: int
    head_width: int
    scale: float
    rotary: Rotary | None = None
    relative: RelativeBias | None = None


class DecoderBuilder(Protocol):
    """Builds, or runs, one forward pass of a decoder. Every operator returns a new value; none changes its operands."""

    # Inputs and outputs
    def token_ids(self) -> Value:
        """The tokens of this call: integers ``[B, T]``; they stand at positions ``P … P + T - 1``."""
        ...

    def output(self, name: str, value: Value) -> None:
        """Declare a float32 output of the graph: ``logits``."""
        ...

    # Embeddings
    def embedding(self, ids: Value, table: str) -> Value:
        """Rows of table ``table`` ``[V, W]`` for each id: ``[B, T, W]``."""
        ...

    def position_embedding(self, table: str, start: int = 0) -> Value:
        """Rows ``start + P … start + P + T - 1`` of ``table``: ``[1, T, W]``."""
        ...

    def scale(self, x: Value, factor: float) -> Value:
        """``x * factor``."""
        ...

    def mark_layer(self, x: Value, layer: int) -> None:
        """Tell that ``x`` is what leaves ``layer`` (0: the embeddings). For distillation; exporters pass it over."""
        ...

    # Layers
    def linear(self, x: Value, weight: str, site: str, activation: ActivationKind | None = None) -> Value:
        """``activation(x @ Wᵀ + b)`` for ``x`` of ``[…, in]``: ``[…, out]``; without ``b`` where there is none."""
        ...

    def linears(self, x: Value, weights: tuple[str, ...], site: str) -> tuple[Value, ...]:
        """Several linear layers that read the same ``x``; an exporter may run them as one product."""
        ...

    def joined_linear(self, x: Value, weight: str, widths: tuple[int, ...], site: str) -> tuple[Value, ...]:
        """A linear layer whose results lie side by side in one weight (GPT-2's ``c_attn``), split by ``widths``."""
        ...

    def norm(self, x: Value, norm: Norm) -> Value:
        """``x`` normalised over its last axis."""
        ...

    def add_norm(self, x: Value, update: Value, norm: Norm) -> tuple[Value, Value]:
        """``x + update``, and that sum normalised."""
        ...

    def head_norm(self, x: Value, norm: Norm, heads: int) -> Value:
        """``x`` ``[B, T, heads * D]`` with each head normalised by itself, all by the same gain ``[D]`` (Qwen3)."""
        ...

    def gate(self, gate: Value, up: Value, kind: ActivationKind) -> Value:
        """``kind(gate) * up`` (Shazeer, "GLU Variants Improve Transformer", 2020)."""
        ...

    def add(self, a: Value, b: Value) -> Value:
        """Element-wise sum with broadcasting."""
        ...

    def attention(self, query: Value, key: Value, value: Value, layer: int, attention: Attention) -> Value:
        """Causal attention over the cache of ``layer`` and this call's tokens.

        Queries ``[B, T, H*D]``, keys and values ``[B, T, K*D]``, not rotated yet → ``[B, T, H*D]``. Keys (rotated)
        and values are put into the layer's cache behind the P that it holds.
        """
        ...

    # Reading out
    def wanted_tokens(self, x: Value) -> Value:
        """Those of ``[B, T, W]`` whose logits are asked for: all while training; a runtime asks for the last ones."""
        ...

    def logits(self, x: Value, weight: str) -> Value:
        """``x @ Wᵀ`` with the output head ``weight``: its own matrix, or a tied embedding's table: ``[…, V]``."""
        ...

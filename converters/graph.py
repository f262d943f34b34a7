"""The operators in which a family's forward pass is written, once, for training and for every runtime.

A family (``converters/families``) writes ``forward(graph, shape, task)`` with these operators and names its
weights. :class:`~edgescribe.converters.torch_graph.TorchGraph` runs the program in torch, with fake
quantisation and gradients; the exporters (``converters/export``) write the same program as an ONNX graph, an
OpenVINO model or a LiteRT flatbuffer. So what is trained is what is exported, and an exporter knows no family.

Operators are as large as what engines fuse (attention, residual layer norm), so that each exporter can pick
its engine's best form. A matrix, table or norm is named by its full path in the checkpoint without ``.weight``
(``bert.encoder.layer.0.output.dense``), a vector by its full name; a *site* names one call of a linear layer
(``layer.0.qkv``), so that shared weights (ALBERT) keep their own activation grids.

Shapes: B batch, T tokens, W width of a tensor's last axis, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Value: TypeAlias = Any
"""A tensor of the graph being built; its type is the builder's own affair."""

ActivationKind = Literal["gelu", "gelu_tanh", "relu", "tanh", "silu"]
"""``gelu`` is the exact one (erf); ``gelu_tanh`` its tanh approximation (``gelu_new``, ``gelu_pytorch_tanh``)."""


class GraphBuilder(Protocol):
    """Builds, or runs, one forward pass. Every operator returns a new value; none changes its operands.

    ``whole_layers`` is true only where the hidden states of whole layers are wanted (distillation), so that the
    last layer must not be narrowed to the one token that a classifier reads; exporters have it false.
    """

    whole_layers: bool

    # Inputs and outputs
    def token_ids(self) -> Value:
        """Input ``input_ids``: integers ``[B, T]``."""
        ...

    def token_mask(self) -> Value:
        """Input ``attention_mask``: integers ``[B, T]``, 1 for a token, 0 for padding."""
        ...

    def token_types(self) -> Value:
        """Input ``token_type_ids``: integers ``[B, T]``. Only XLNet asks for it; others fold type 0 in."""
        ...

    def output(self, name: str, value: Value) -> None:
        """Declare a float32 output of the graph."""
        ...

    # Embeddings
    def embedding(self, ids: Value, table: str) -> Value:
        """Rows of table ``table`` ``[V, W]`` for each id: ``[B, T, W]``."""
        ...

    def position_embedding(self, table: str, start: int = 0) -> Value:
        """Rows ``start … start + T - 1`` of ``table``: ``[1, T, W]``."""
        ...

    def table_row(self, table: str, row: int) -> Value:
        """One row of ``table``: ``[1, 1, W]``."""
        ...

    def mark_layer(self, x: Value, layer: int) -> None:
        """Tell that ``x`` is what leaves ``layer`` (0: the embeddings). For distillation; exporters pass it over."""
        ...

    # Layers
    def linear(self, x: Value, weight: str, site: str, activation: ActivationKind | None = None) -> Value:
        """``activation(x @ Wᵀ + b)`` for ``x`` of ``[…, in]``: ``[…, out]``. ``site`` names the activation grids."""
        ...

    def linears(self, x: Value, weights: tuple[str, ...], site: str) -> tuple[Value, ...]:
        """Several linear layers that read the same ``x`` and share one site: one grid for ``x``, one for all results.

        An exporter may run them as one product. A later call with the same ``site`` uses the same grids.
        """
        ...

    def layer_norm(self, x: Value, norm: str, eps: float, residual: Value | None = None) -> Value:
        """Layer normalisation over the last axis of ``x`` (plus ``residual`` when given)."""
        ...

    def activation(self, x: Value, kind: ActivationKind) -> Value:
        """Element-wise activation."""
        ...

    def add(self, a: Value, b: Value) -> Value:
        """Element-wise sum with broadcasting."""
        ...

    def add_vector(self, x: Value, vector: str) -> Value:
        """``x`` plus the parameter ``vector``, flattened to ``[W]``."""
        ...

    def attention(
        self, query: Value, key: Value, value: Value, mask: Value, heads: int, bias: Value | None = None,
        scale: float | None = None,
    ) -> Value:
        """Softmax attention: queries ``[B, Tq, H*D]``, keys and values ``[B, T, H*D]`` → ``[B, Tq, H*D]``.

        ``softmax((q kᵀ + bias) * scale)`` with ``bias`` ``[B or 1, H, T, T]`` when given, and padding left out by
        ``mask`` ``[B, T]``; ``scale`` is ``D ** -0.5`` unless given.
        """
        ...

    # Positions relative to each other
    def relative_bias(
        self, table: str, bucket_of: Callable[[NDArray[np.int64]], NDArray[np.int64]], factor: float = 1.0
    ) -> Value:
        """``[1, H, T, T]`` with ``[0, h, i, j] = factor * table[bucket_of(j - i), h]``.

        ``table``, ``[buckets, H]``, is a float parameter by its full name. ``factor`` undoes the scale of
        :meth:`attention` where a family adds the bias after scaling.
        """
        ...

    def relative_scores(
        self, query: Value, weight: str, basis: Callable[[NDArray[np.int64]], NDArray[np.float32]], heads: int
    ) -> Value:
        """``[B, H, T, T]`` with ``[b, h, i, j] = q[b, i, h] · (basis(i - j) @ Wᵀ)[h]`` (XLNet's position scores).

        ``basis`` maps offsets ``[n]`` to sinusoids ``[n, in]``; an exporter folds ``basis @ Wᵀ`` to a constant.
        """
        ...

    def segment_scores(self, query: Value, table: str, types: Value, heads: int) -> Value:
        """``[B, H, T, T]`` with ``q[b, i, h] · table[1 if types differ at i, j else 0, h]`` (XLNet's segments)."""
        ...

    # Reading out
    def token(self, x: Value, index: Literal[0, -1]) -> Value:
        """The first or last token of ``[B, T, W]``, the axis kept: ``[B, 1, W]``."""
        ...

    def squeeze_token(self, x: Value) -> Value:
        """``[B, 1, W]`` → ``[B, W]``."""
        ...

    def mean_pool(self, x: Value, mask: Value) -> Value:
        """Mean over the tokens that ``mask`` keeps: ``[B, W]``. At least one token is kept in every row."""
        ...

    def l2_normalize(self, x: Value) -> Value:
        """``x / max(‖x‖₂, 1e-12)`` over the last axis."""
        ...

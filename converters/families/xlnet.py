"""XLNet (``model_type`` xlnet): post-norm layers whose attention scores positions and segments by relation.

Yang et al., "XLNet: Generalized Autoregressive Pretraining for Language Understanding" (2019); the position
scores are those of Dai et al., "Transformer-XL" (2019). Served as an encoder: no memory, no permutation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import StudentError
from ..anatomy import Anatomy, Parameter, Shape, Task
from ..graph import GraphBuilder, Value
from .bert_layers import (
    ACTIVATIONS,
    TAG_HEAD,
    activation_of,
    label_count,
    linear_parameters,
    norm_parameters,
    read_embedding,
)

LAYER = "layer.{layer}."

POSITIONS = "edgescribe_positions"
"""Our field of the configuration for the longest input in tokens: XLNet itself knows no limit."""

LONGEST = 512
"""The longest input where nothing says otherwise: what published XLNets were trained on."""

SUMMARY = "sequence_summary.summary"


def sinusoids(width: int) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """The function from offsets ``[n]`` to sines and cosines ``[n, width]`` of geometric frequencies."""
    powers = np.float32(10000.0) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    frequencies = np.float32(1.0) / powers

    def basis(offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        angles = offsets.astype(np.float32)[:, None] * frequencies
        waves: NDArray[np.float32] = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return waves

    return basis


def _shape(config: Mapping[str, Any]) -> Shape:
    for field, usual in (("attn_type", "bi"), ("bi_data", False)):
        if config.get(field, usual) != usual:
            raise StudentError(f"config.json has {field} {config[field]!r}; XLNet is served with {usual!r}")
    if config.get("clamp_len", -1) > 0:
        raise StudentError(f"config.json has clamp_len {config['clamp_len']}; XLNet is served without (-1)")
    if config["d_model"] % 2:
        raise StudentError(f"config.json has d_model {config['d_model']}; XLNet's sinusoids need an even one")
    return Shape(
        layers=config["n_layer"],
        hidden=config["d_model"],
        heads=config["n_head"],
        neurons=config["d_inner"],
        vocabulary=config["vocab_size"],
        positions=config.get(POSITIONS, LONGEST),
        embedding=config["d_model"],
        labels=label_count(config),
        activation=activation_of(config, "ff_activation"),
        eps=config.get("layer_norm_eps", 1e-12),
        variant=_summary_variant(config),
    )


def _summary_variant(config: Mapping[str, Any]) -> tuple[str, ...]:
    """How a classifier reads the tokens: ``last`` or ``mean``, ``projection`` if there is one, and its activation."""
    kind = config.get("summary_type", "last")
    if kind not in ("last", "cls_index", "mean"):
        raise StudentError(
            f"config.json has summary_type {kind!r}; these are supported: last, cls_index, mean. (Padding stands in "
            "front, so that the first token would depend on the batch.)"
        )
    words = ["mean" if kind == "mean" else "last"]
    if config.get("summary_use_proj", True):
        words.append("projection")
    activation = config.get("summary_activation", "tanh")
    if activation:
        if activation not in ACTIVATIONS:
            raise StudentError(f"config.json has summary_activation {activation!r}, which is not supported")
        words.append(ACTIVATIONS[activation])
    return tuple(words)


def _has_projection(shape: Shape) -> bool:
    return "projection" in shape.variant


def _forward(graph: GraphBuilder, shape: Shape, task: Task) -> None:
    prefix = "" if task == "embed" else "transformer."
    mask, types = graph.token_mask(), graph.token_types()
    x = graph.embedding(graph.token_ids(), f"{prefix}word_embedding")
    graph.mark_layer(x, 0)
    last_only = task == "classify" and "last" in shape.variant
    for layer in range(shape.layers):
        narrow = last_only and layer == shape.layers - 1 and not graph.whole_layers
        x = _layer(graph, shape, x, mask, types, prefix + LAYER.format(layer=layer), f"layer.{layer}", narrow)
        graph.mark_layer(x, layer + 1)
    if task == "classify":
        _classify(graph, shape, x, mask)
    elif task == "tag":
        graph.output("logits", graph.linear(x, "classifier", "classifier"))
    else:
        read_embedding(graph, x, mask)


def _layer(
    graph: GraphBuilder, shape: Shape, x: Value, mask: Value, types: Value, path: str, site: str, narrow: bool
) -> Value:
    """One layer on ``[B, T, hidden]``; with ``narrow`` the rest after attention for the last token alone."""
    attention = f"{path}rel_attn."
    query, key, value = graph.linears(x, (f"{attention}q", f"{attention}k", f"{attention}v"), f"{site}.qkv")
    positions = graph.relative_scores(
        graph.add_vector(query, f"{attention}r_r_bias"), f"{attention}r", sinusoids(shape.hidden), shape.heads
    )
    segments = graph.segment_scores(
        graph.add_vector(query, f"{attention}r_s_bias"), f"{attention}seg_embed", types, shape.heads
    )
    bias = graph.add(positions, segments)
    query = graph.add_vector(query, f"{attention}r_w_bias")
    context = graph.attention(query, key, value, mask, shape.heads, bias)
    if narrow:
        context, x = graph.token(context, -1), graph.token(x, -1)
    attended = graph.linear(context, f"{attention}o", f"{site}.attention_output")
    x = graph.layer_norm(attended, f"{attention}layer_norm", shape.eps, residual=x)
    inner = graph.linear(x, f"{path}ff.layer_1", f"{site}.feed_forward_in", shape.activation)
    outer = graph.linear(inner, f"{path}ff.layer_2", f"{site}.feed_forward_out")
    return graph.layer_norm(outer, f"{path}ff.layer_norm", shape.eps, residual=x)


def _classify(graph: GraphBuilder, shape: Shape, x: Value, mask: Value) -> None:
    pooled = graph.mean_pool(x, mask) if "mean" in shape.variant else graph.squeeze_token(graph.token(x, -1))
    activation = next((kind for kind in ACTIVATIONS.values() if kind in shape.variant), None)
    if _has_projection(shape):
        pooled = graph.linear(pooled, SUMMARY, "pooler", activation)
    elif activation is not None:
        pooled = graph.activation(pooled, activation)
    graph.output("logits", graph.linear(pooled, "logits_proj", "classifier"))


def _attention_parameters() -> tuple[Parameter, ...]:
    start = f"{LAYER}rel_attn."
    return (
        *(Parameter(start + part, ("hidden", "head", "head_width"), "matrix", "in_heads") for part in "qkv"),
        Parameter(f"{start}o", ("hidden", "head", "head_width"), "matrix", "out_heads"),
        Parameter(f"{start}r", ("sinusoids", "head", "head_width"), "matrix", "in_heads"),
        *(Parameter(start + part, ("head", "head_width"), "vector") for part in ("r_r_bias", "r_s_bias", "r_w_bias")),
        Parameter(f"{start}seg_embed", ("fixed", "head", "head_width"), "vector"),
        *norm_parameters(f"{start}layer_norm", "hidden"),
    )


ANATOMY = Anatomy(
    model_type="xlnet",
    parameters=(
        Parameter("word_embedding.weight", ("vocabulary", "hidden"), "table"),
        *_attention_parameters(),
        *linear_parameters(f"{LAYER}ff.layer_1", "neurons", "hidden"),
        *linear_parameters(f"{LAYER}ff.layer_2", "hidden", "neurons"),
        *norm_parameters(f"{LAYER}ff.layer_norm", "hidden"),
    ),
    heads_of={
        "classify": (
            *(replace(each, when=_has_projection) for each in linear_parameters(SUMMARY, "hidden", "hidden")),
            *linear_parameters("logits_proj", "labels", "hidden"),
        ),
        "tag": TAG_HEAD,
    },
    prefix="transformer.",
    config_fields={
        "layers": "n_layer",
        "hidden": "d_model",
        "heads": "n_head",
        "head_width": "d_head",
        "neurons": "d_inner",
        "vocabulary": "vocab_size",
        "positions": POSITIONS,
        "activation": "ff_activation",
    },
    shape=_shape,
    forward=_forward,
    architectures={
        "classify": "XLNetForSequenceClassification",
        "tag": "XLNetForTokenClassification",
        "embed": "XLNetModel",
    },
    layer_prefix=LAYER,
    padding_side="left",
    sinusoids=sinusoids,
    ignored=(r"(transformer\.)?mask_emb", r"lm_loss\..*"),
)

"""MPNet (``model_type`` mpnet): BERT's layers with a learned bias for how far two tokens lie apart.

Song et al., "MPNet: Masked and Permuted Pre-training for Language Understanding" (2020); the buckets are T5's
(Raffel et al., "Exploring the Limits of Transfer Learning", 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import StudentError
from ..anatomy import Anatomy, Parameter, Shape, Task
from ..graph import GraphBuilder
from .bert_layers import (
    CONFIG_FIELDS,
    TAG_HEAD,
    LayerNames,
    bert_shape,
    embed_tokens,
    embedding_parameters,
    encode_layers,
    layer_parameters,
    linear_parameters,
    read_out,
    wants_first_token,
)

PADDING = 1
"""The padding index, which transformers' MPNet takes for granted; positions are counted from it."""

BUCKETS = 32
"""Of transformers' MPNet, whatever the configuration says."""

FARTHEST = 128

RELATIVE_BIAS = "encoder.relative_attention_bias.weight"

LAYER = LayerNames(
    layer="encoder.layer.{layer}.",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attention_output="attention.attn.o",
    attention_norm="attention.LayerNorm",
    feed_forward_in="intermediate.dense",
    feed_forward_out="output.dense",
    feed_forward_norm="output.LayerNorm",
)


def bucket_of(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of each offset ``j - i``: half for each direction, near ones exact, far ones by logarithm."""
    half = BUCKETS // 2
    exact = half // 2
    distance = np.abs(offsets)
    # In float32, as the model was trained: the bounds of the buckets are where rounding falls.
    steps = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(FARTHEST / exact)
    )
    far = np.minimum(exact + (steps * np.float32(half - exact)).astype(np.int64), half - 1)
    buckets: NDArray[np.int64] = np.where(offsets > 0, half, 0) + np.where(distance < exact, distance, far)
    return buckets


def _shape(config: Mapping[str, Any]) -> Shape:
    padding = config.get("pad_token_id", PADDING)
    if padding not in (PADDING, None):
        raise StudentError(f"config.json has pad_token_id {padding}; MPNet's positions need padding to be {PADDING}")
    buckets = config.get("relative_attention_num_buckets", BUCKETS)
    if buckets < BUCKETS:
        raise StudentError(
            f"config.json has relative_attention_num_buckets {buckets}; transformers' MPNet looks up {BUCKETS} of them"
        )
    return bert_shape(config, position_offset=PADDING + 1)


def _forward(graph: GraphBuilder, shape: Shape, task: Task) -> None:
    prefix = "" if task == "embed" else "mpnet."
    mask = graph.token_mask()
    x = embed_tokens(graph, shape, prefix, types=False)
    graph.mark_layer(x, 0)
    # MPNet adds its bias after scaling the scores; attention scales the sum.
    bias = graph.relative_bias(prefix + RELATIVE_BIAS, bucket_of, math.sqrt(shape.head_width))
    x = encode_layers(graph, shape, x, mask, prefix, wants_first_token(task), LAYER, bias)
    read_out(graph, task, x, mask, "classifier.dense", "classifier.out_proj", "tanh")


ANATOMY = Anatomy(
    model_type="mpnet",
    parameters=(
        *embedding_parameters("hidden", types=False),
        *layer_parameters(LAYER),
        Parameter(RELATIVE_BIAS, ("fixed", "head"), "vector"),
    ),
    heads_of={
        "classify": (
            *linear_parameters("classifier.dense", "hidden", "hidden"),
            *linear_parameters("classifier.out_proj", "labels", "hidden"),
        ),
        "tag": TAG_HEAD,
    },
    prefix="mpnet.",
    config_fields=CONFIG_FIELDS,
    shape=_shape,
    forward=_forward,
    architectures={
        "classify": "MPNetForSequenceClassification",
        "tag": "MPNetForTokenClassification",
        "embed": "MPNetModel",
    },
    layer_prefix=LAYER.layer,
    fixed_ids=(PADDING,),
    ignored=(r"(mpnet\.)?embeddings\.position_ids", r"(mpnet\.)?pooler\..*", r"lm_head\..*"),
)

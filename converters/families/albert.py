"""ALBERT (``model_type`` albert): all layers share one layer's weights, embeddings have a width of their own.

Lan et al., "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations" (2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import StudentError
from ..anatomy import Anatomy, Shape, Task
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

PROJECTION = "encoder.embedding_hidden_mapping_in"

LAYER = LayerNames(
    layer="encoder.albert_layer_groups.0.albert_layers.0.",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    attention_output="attention.dense",
    attention_norm="attention.LayerNorm",
    feed_forward_in="ffn",
    feed_forward_out="ffn_output",
    feed_forward_norm="full_layer_layer_norm",
)


def _shape(config: Mapping[str, Any]) -> Shape:
    for field in ("num_hidden_groups", "inner_group_num"):
        if config.get(field, 1) != 1:
            raise StudentError(
                f"config.json has {field} {config[field]}; ALBERT is served where all layers share one layer's "
                f"weights ({field} 1), as every published checkpoint has it"
            )
    return bert_shape(
        {"hidden_act": "gelu_new", **config},
        embedding=config.get("embedding_size", 128),
    )


def _forward(graph: GraphBuilder, shape: Shape, task: Task) -> None:
    prefix = "" if task == "embed" else "albert."
    mask = graph.token_mask()
    x = embed_tokens(graph, shape, prefix)
    x = graph.linear(x, prefix + PROJECTION, "embedding_projection")
    graph.mark_layer(x, 0)
    x = encode_layers(graph, shape, x, mask, prefix, wants_first_token(task), LAYER)
    read_out(graph, task, x, mask, "albert.pooler", "classifier", "tanh")


ANATOMY = Anatomy(
    model_type="albert",
    parameters=(
        *embedding_parameters("embedding"),
        *linear_parameters(PROJECTION, "hidden", "embedding"),
        *layer_parameters(LAYER),
    ),
    heads_of={
        "classify": (
            *linear_parameters("albert.pooler", "hidden", "hidden"),
            *linear_parameters("classifier", "labels", "hidden"),
        ),
        "tag": TAG_HEAD,
    },
    prefix="albert.",
    config_fields={**CONFIG_FIELDS, "embedding": "embedding_size"},
    shape=_shape,
    forward=_forward,
    architectures={
        "classify": "AlbertForSequenceClassification",
        "tag": "AlbertForTokenClassification",
        "embed": "AlbertModel",
    },
    layer_prefix=LAYER.layer,
    shared_layers=True,
    projection=f"{PROJECTION}.weight",
    ignored=(
        r"(albert\.)?embeddings\.position_ids",
        r"(albert\.)?pooler\..*",
        r"predictions\..*",
        r"sop_classifier\..*",
    ),
)

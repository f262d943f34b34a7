"""DistilBERT (``model_type`` distilbert): BERT without token types and without a pooler.

Sanh et al., "DistilBERT, a distilled version of BERT" (2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..anatomy import Anatomy, Shape, Task
from ..graph import GraphBuilder
from .bert_layers import (
    TAG_HEAD,
    LayerNames,
    activation_of,
    embed_tokens,
    embedding_parameters,
    encode_layers,
    label_count,
    layer_parameters,
    linear_parameters,
    read_out,
    wants_first_token,
)

LAYER = LayerNames(
    layer="transformer.layer.{layer}.",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    feed_forward_in="ffn.lin1",
    feed_forward_out="ffn.lin2",
    feed_forward_norm="output_layer_norm",
)


def _shape(config: Mapping[str, Any]) -> Shape:
    return Shape(
        layers=config["n_layers"],
        hidden=config["dim"],
        heads=config["n_heads"],
        neurons=config["hidden_dim"],
        vocabulary=config["vocab_size"],
        positions=config.get("max_position_embeddings", 512),
        embedding=config["dim"],
        labels=label_count(config),
        activation=activation_of(config, "activation"),
        eps=1e-12,
    )


def _forward(graph: GraphBuilder, shape: Shape, task: Task) -> None:
    prefix = "" if task == "embed" else "distilbert."
    mask = graph.token_mask()
    x = embed_tokens(graph, shape, prefix, types=False)
    graph.mark_layer(x, 0)
    x = encode_layers(graph, shape, x, mask, prefix, wants_first_token(task), LAYER)
    read_out(graph, task, x, mask, "pre_classifier", "classifier", "relu")


ANATOMY = Anatomy(
    model_type="distilbert",
    parameters=(*embedding_parameters("hidden", types=False), *layer_parameters(LAYER)),
    heads_of={
        "classify": (
            *linear_parameters("pre_classifier", "hidden", "hidden"),
            *linear_parameters("classifier", "labels", "hidden"),
        ),
        "tag": TAG_HEAD,
    },
    prefix="distilbert.",
    config_fields={
        "layers": "n_layers",
        "hidden": "dim",
        "heads": "n_heads",
        "neurons": "hidden_dim",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "activation": "activation",
    },
    shape=_shape,
    forward=_forward,
    architectures={
        "classify": "DistilBertForSequenceClassification",
        "tag": "DistilBertForTokenClassification",
        "embed": "DistilBertModel",
    },
    layer_prefix=LAYER.layer,
    ignored=(r"(distilbert\.)?embeddings\.position_ids", r"vocab_(transform|layer_norm|projector)\..*"),
)

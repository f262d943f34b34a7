"""BERT (``model_type`` bert): also MiniLM, TinyBERT and most sentence encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..anatomy import Anatomy, Parameter, Shape, Task
from ..graph import GraphBuilder
from .bert_layers import (
    LAYER_PARAMETERS,
    activation_of,
    encode_layers,
    read_embedding,
    read_first_token,
    wants_first_token,
)


def _shape(config: Mapping[str, Any]) -> Shape:
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        neurons=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        positions=config.get("max_position_embeddings", 512),
        embedding=config["hidden_size"],
        labels=len(config.get("id2label") or {0: "", 1: ""}),
        activation=activation_of(config),
        eps=config.get("layer_norm_eps", 1e-12),
    )


def _forward(graph: GraphBuilder, shape: Shape, task: Task) -> None:
    prefix = "" if task == "embed" else "bert."
    mask = graph.token_mask()
    x = graph.embedding(graph.token_ids(), f"{prefix}embeddings.word_embeddings")
    places = graph.add(
        graph.position_embedding(f"{prefix}embeddings.position_embeddings"),
        graph.table_row(f"{prefix}embeddings.token_type_embeddings", 0),
    )
    x = graph.layer_norm(x, f"{prefix}embeddings.LayerNorm", shape.eps, residual=places)
    graph.mark_layer(x, 0)
    x = encode_layers(graph, shape, x, mask, prefix, wants_first_token(task))
    if task == "classify":
        pooled = graph.linear(read_first_token(graph, x), "bert.pooler.dense", "pooler", "tanh")
        graph.output("logits", graph.linear(pooled, "classifier", "classifier"))
    elif task == "tag":
        graph.output("logits", graph.linear(x, "classifier", "classifier"))
    else:
        read_embedding(graph, x, mask)


ANATOMY = Anatomy(
    model_type="bert",
    parameters=(
        Parameter("embeddings.word_embeddings.weight", ("vocabulary", "hidden"), "table"),
        Parameter("embeddings.position_embeddings.weight", ("positions", "hidden"), "table"),
        Parameter("embeddings.token_type_embeddings.weight", ("types", "hidden"), "table"),
        Parameter("embeddings.LayerNorm.weight", ("hidden",), "norm"),
        Parameter("embeddings.LayerNorm.bias", ("hidden",), "norm"),
        *LAYER_PARAMETERS,
    ),
    heads_of={
        "classify": (
            Parameter("bert.pooler.dense.weight", ("hidden", "hidden"), "matrix"),
            Parameter("bert.pooler.dense.bias", ("hidden",), "bias"),
            Parameter("classifier.weight", ("labels", "hidden"), "matrix"),
            Parameter("classifier.bias", ("labels",), "bias"),
        ),
        "tag": (
            Parameter("classifier.weight", ("labels", "hidden"), "matrix"),
            Parameter("classifier.bias", ("labels",), "bias"),
        ),
    },
    prefix="bert.",
    config_fields={
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "neurons": "intermediate_size",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "activation": "hidden_act",
    },
    shape=_shape,
    forward=_forward,
    architectures={
        "classify": "BertForSequenceClassification",
        "tag": "BertForTokenClassification",
        "embed": "BertModel",
    },
    layer_prefix="encoder.layer.{layer}.",
    ignored=(r"(bert\.)?embeddings\.position_ids", r"(bert\.)?pooler\..*", r"cls\..*"),
)

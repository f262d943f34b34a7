"""ELECTRA (``model_type`` electra): BERT with embeddings of a width of their own, and GELU in its head.

Clark et al., "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators" (2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..anatomy import Anatomy, Shape, Task
from ..graph import GraphBuilder
from .bert_layers import (
    BERT,
    CONFIG_FIELDS,
    TAG_HEAD,
    bert_shape,
    embed_tokens,
    embedding_parameters,
    encode_layers,
    layer_parameters,
    linear_parameters,
    read_out,
    wants_first_token,
)

PROJECTION = "embeddings_project"


def _shape(config: Mapping[str, Any]) -> Shape:
    return bert_shape(config, embedding=config.get("embedding_size", 128))


def _is_projected(shape: Shape) -> bool:
    return shape.embedding != shape.hidden


def _forward(graph: GraphBuilder, shape: Shape, task: Task) -> None:
    prefix = "" if task == "embed" else "electra."
    mask = graph.token_mask()
    x = embed_tokens(graph, shape, prefix)
    if _is_projected(shape):
        x = graph.linear(x, prefix + PROJECTION, "embedding_projection")
    graph.mark_layer(x, 0)
    x = encode_layers(graph, shape, x, mask, prefix, wants_first_token(task))
    read_out(graph, task, x, mask, "classifier.dense", "classifier.out_proj", "gelu")


ANATOMY = Anatomy(
    model_type="electra",
    parameters=(
        *embedding_parameters("embedding"),
        *(replace(each, when=_is_projected) for each in linear_parameters(PROJECTION, "hidden", "embedding")),
        *layer_parameters(BERT),
    ),
    heads_of={
        "classify": (
            *linear_parameters("classifier.dense", "hidden", "hidden"),
            *linear_parameters("classifier.out_proj", "labels", "hidden"),
        ),
        "tag": TAG_HEAD,
    },
    prefix="electra.",
    config_fields={**CONFIG_FIELDS, "embedding": "embedding_size"},
    shape=_shape,
    forward=_forward,
    architectures={
        "classify": "ElectraForSequenceClassification",
        "tag": "ElectraForTokenClassification",
        "embed": "ElectraModel",
    },
    layer_prefix=BERT.layer,
    projection=f"{PROJECTION}.weight",
    ignored=(r"(electra\.)?embeddings\.position_ids", r"(discriminator|generator)_.*"),
)

"""RoBERTa (``model_type`` roberta): BERT with positions counted from the padding index, and its own head.

Liu et al., "RoBERTa: A Robustly Optimized BERT Pretraining Approach" (2019).
"""

from __future__ import annotations

from collections.abc import Mapping
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


def _shape(config: Mapping[str, Any]) -> Shape:
    padding = config.get("pad_token_id")
    return bert_shape(config, position_offset=(1 if padding is None else int(padding)) + 1)


def _forward(graph: GraphBuilder, shape: Shape, task: Task) -> None:
    prefix = "" if task == "embed" else "roberta."
    mask = graph.token_mask()
    x = embed_tokens(graph, shape, prefix)
    graph.mark_layer(x, 0)
    x = encode_layers(graph, shape, x, mask, prefix, wants_first_token(task))
    read_out(graph, task, x, mask, "classifier.dense", "classifier.out_proj", "tanh")


ANATOMY = Anatomy(
    model_type="roberta",
    parameters=(*embedding_parameters("hidden"), *layer_parameters(BERT)),
    heads_of={
        "classify": (
            *linear_parameters("classifier.dense", "hidden", "hidden"),
            *linear_parameters("classifier.out_proj", "labels", "hidden"),
        ),
        "tag": TAG_HEAD,
    },
    prefix="roberta.",
    config_fields=CONFIG_FIELDS,
    shape=_shape,
    forward=_forward,
    architectures={
        "classify": "RobertaForSequenceClassification",
        "tag": "RobertaForTokenClassification",
        "embed": "RobertaModel",
    },
    layer_prefix=BERT.layer,
    ignored=(r"(roberta\.)?embeddings\.position_ids", r"(roberta\.)?pooler\..*", r"lm_head\..*"),
)

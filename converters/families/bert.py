"""BERT (``model_type`` bert): also MiniLM, TinyBERT and most sentence encoders."""

from __future__ import annotations

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


def _forward(graph: GraphBuilder, shape: Shape, task: Task) -> None:
    prefix = "" if task == "embed" else "bert."
    mask = graph.token_mask()
    x = embed_tokens(graph, shape, prefix)
    graph.mark_layer(x, 0)
    x = encode_layers(graph, shape, x, mask, prefix, wants_first_token(task))
    read_out(graph, task, x, mask, "bert.pooler.dense", "classifier", "tanh")


ANATOMY = Anatomy(
    model_type="bert",
    parameters=(*embedding_parameters("hidden"), *layer_parameters(BERT)),
    heads_of={
        "classify": (
            *linear_parameters("bert.pooler.dense", "hidden", "hidden"),
            *linear_parameters("classifier", "labels", "hidden"),
        ),
        "tag": TAG_HEAD,
    },
    prefix="bert.",
    config_fields=CONFIG_FIELDS,
    shape=bert_shape,
    forward=_forward,
    architectures={
        "classify": "BertForSequenceClassification",
        "tag": "BertForTokenClassification",
        "embed": "BertModel",
    },
    layer_prefix=BERT.layer,
    ignored=(r"(bert\.)?embeddings\.position_ids", r"(bert\.)?pooler\..*", r"cls\..*"),
)

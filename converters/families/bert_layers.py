"""What BERT and its kin have in common: embeddings, post-norm transformer layers and heads on the first token.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import StudentError
from ..anatomy import Parameter, Role, Shape, Task
from ..graph import ActivationKind, GraphBuilder, Value

ACTIVATIONS: Mapping[str, ActivationKind] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""transformers' names of activations, and ours."""


@dataclass(frozen=True)
class LayerNames:
    """What a family calls the parts of one layer; ``layer`` is what their names begin with, with ``{layer}``."""

    layer: str
    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    feed_forward_in: str
    feed_forward_out: str
    feed_forward_norm: str


BERT = LayerNames(
    layer="encoder.layer.{layer}.",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    feed_forward_in="intermediate.dense",
    feed_forward_out="output.dense",
    feed_forward_norm="output.LayerNorm",
)


def linear_parameters(name: str, out: Role, width: Role) -> tuple[Parameter, Parameter]:
    """Weight and bias of a linear layer."""
    return Parameter(f"{name}.weight", (out, width), "matrix"), Parameter(f"{name}.bias", (out,), "bias")


def norm_parameters(name: str, width: Role) -> tuple[Parameter, Parameter]:
    """Gain and bias of a layer norm."""
    return Parameter(f"{name}.weight", (width,), "norm"), Parameter(f"{name}.bias", (width,), "norm")


def layer_parameters(names: LayerNames) -> tuple[Parameter, ...]:
    """The tensors of one layer."""
    start = names.layer
    return (
        *linear_parameters(start + names.query, "heads", "hidden"),
        *linear_parameters(start + names.key, "heads", "hidden"),
        *linear_parameters(start + names.value, "heads", "hidden"),
        *linear_parameters(start + names.attention_output, "hidden", "heads"),
        *norm_parameters(start + names.attention_norm, "hidden"),
        *linear_parameters(start + names.feed_forward_in, "neurons", "hidden"),
        *linear_parameters(start + names.feed_forward_out, "hidden", "neurons"),
        *norm_parameters(start + names.feed_forward_norm, "hidden"),
    )


def embedding_parameters(width: Role, types: bool = True) -> tuple[Parameter, ...]:
    """The tensors of the embeddings, token types among them where the family has any."""
    tables = [
        Parameter("embeddings.word_embeddings.weight", ("vocabulary", width), "table"),
        Parameter("embeddings.position_embeddings.weight", ("positions", width), "table"),
    ]
    if types:
        tables.append(Parameter("embeddings.token_type_embeddings.weight", ("types", width), "table"))
    return (*tables, *norm_parameters("embeddings.LayerNorm", width))


def activation_of(config: Mapping[str, Any], field: str = "hidden_act") -> ActivationKind:
    """The activation that a configuration names.

    Raises:
        StudentError: an activation that no exporter has.
    """
    name = config.get(field, "gelu")
    if name not in ACTIVATIONS:
        raise StudentError(
            f"config.json has {field} {name!r}, which is not supported; these are: {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def label_count(config: Mapping[str, Any]) -> int:
    """How many classes or tags a configuration has; transformers' default is 2."""
    return len(config.get("id2label") or {0: "", 1: ""})


def bert_shape(config: Mapping[str, Any], **others: Any) -> Shape:
    """The sizes of a configuration that names its fields as BERT does; ``others`` are set beside or instead.

    Raises:
        KeyError: a field is missing.
        StudentError: an activation that no exporter has.
    """
    fields: dict[str, Any] = {
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "neurons": config["intermediate_size"],
        "vocabulary": config["vocab_size"],
        "positions": config.get("max_position_embeddings", 512),
        "embedding": config["hidden_size"],
        "labels": label_count(config),
        "activation": activation_of(config),
        "eps": config.get("layer_norm_eps", 1e-12),
    }
    return Shape(**{**fields, **others})


CONFIG_FIELDS: Mapping[str, str] = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "neurons": "intermediate_size",
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "activation": "hidden_act",
}
"""Where BERT's configuration, and that of most of its kin, has its sizes."""


def embed_tokens(graph: GraphBuilder, shape: Shape, prefix: str, types: bool = True) -> Value:
    """Sum of word, position and (where the family has any) token type embeddings, normalised: ``[B, T, embedding]``.

    Tokens are all of type 0.
    """
    x = graph.embedding(graph.token_ids(), f"{prefix}embeddings.word_embeddings")
    places = graph.position_embedding(f"{prefix}embeddings.position_embeddings", shape.position_offset)
    if types:
        places = graph.add(places, graph.table_row(f"{prefix}embeddings.token_type_embeddings", 0))
    return graph.layer_norm(x, f"{prefix}embeddings.LayerNorm", shape.eps, residual=places)


def encode_layers(
    graph: GraphBuilder,
    shape: Shape,
    x: Value,
    mask: Value,
    prefix: str,
    first_token_only: bool,
    names: LayerNames = BERT,
    bias: Value | None = None,
) -> Value:
    """Run all layers on ``x`` ``[B, T, hidden]``; ``bias`` ``[1, H, T, T]`` is for attention.

    With ``first_token_only`` the last layer computes keys and values for all tokens but everything else for the
    first token alone, which is all that a classifier reads: ``[B, 1, hidden]``, the very same numbers. (A bias
    has a row for each query, so with one the queries are narrowed after attention.)
    """
    for layer in range(shape.layers):
        path, site = prefix + names.layer.format(layer=layer), f"layer.{layer}"
        narrow = first_token_only and layer == shape.layers - 1 and not graph.whole_layers
        heads = (path + names.query, path + names.key, path + names.value)
        if narrow and bias is None:
            key, value = graph.linears(x, heads[1:], f"{site}.qkv")
            x = graph.token(x, 0)
            (query,) = graph.linears(x, heads[:1], f"{site}.qkv")
        else:
            query, key, value = graph.linears(x, heads, f"{site}.qkv")
        context = graph.attention(query, key, value, mask, shape.heads, bias)
        if narrow and bias is not None:
            context, x = graph.token(context, 0), graph.token(x, 0)
        attended = graph.linear(context, path + names.attention_output, f"{site}.attention_output")
        x = graph.layer_norm(attended, path + names.attention_norm, shape.eps, residual=x)
        inner = graph.linear(x, path + names.feed_forward_in, f"{site}.feed_forward_in", shape.activation)
        outer = graph.linear(inner, path + names.feed_forward_out, f"{site}.feed_forward_out")
        x = graph.layer_norm(outer, path + names.feed_forward_norm, shape.eps, residual=x)
        graph.mark_layer(x, layer + 1)
    return x


def read_out(
    graph: GraphBuilder, task: Task, x: Value, mask: Value, dense: str, last: str, activation: ActivationKind
) -> None:
    """Write the task's head on ``x`` ``[B, T or 1, hidden]``.

    A classifier is a linear layer ``dense`` with ``activation`` on the first token, and another one, ``last``; a
    tagger a linear layer ``classifier`` on each token; an embedding the mean over the tokens, of length 1.
    """
    if task == "classify":
        pooled = graph.linear(read_first_token(graph, x), dense, "pooler", activation)
        graph.output("logits", graph.linear(pooled, last, "classifier"))
    elif task == "tag":
        graph.output("logits", graph.linear(x, "classifier", "classifier"))
    else:
        read_embedding(graph, x, mask)


TAG_HEAD = linear_parameters("classifier", "labels", "hidden")
"""The tensors of a tagger's head in all these families."""


def read_first_token(graph: GraphBuilder, x: Value) -> Value:
    """The first token of ``[B, T or 1, hidden]``: ``[B, hidden]``."""
    return graph.squeeze_token(graph.token(x, 0))


def read_embedding(graph: GraphBuilder, x: Value, mask: Value) -> None:
    """Output ``embedding`` ``[B, hidden]``: mean over the tokens, of length 1."""
    graph.output("embedding", graph.l2_normalize(graph.mean_pool(x, mask)))


def wants_first_token(task: Task) -> bool:
    """Whether the task's head reads the first token alone."""
    return task == "classify"

"""The transformer layers that BERT, RoBERTa and ELECTRA have in common: post-norm, absolute positions.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import StudentError
from ..anatomy import Parameter, Shape, Task
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

LAYER_PARAMETERS = (
    Parameter("encoder.layer.{layer}.attention.self.query.weight", ("heads", "hidden"), "matrix"),
    Parameter("encoder.layer.{layer}.attention.self.query.bias", ("heads",), "bias"),
    Parameter("encoder.layer.{layer}.attention.self.key.weight", ("heads", "hidden"), "matrix"),
    Parameter("encoder.layer.{layer}.attention.self.key.bias", ("heads",), "bias"),
    Parameter("encoder.layer.{layer}.attention.self.value.weight", ("heads", "hidden"), "matrix"),
    Parameter("encoder.layer.{layer}.attention.self.value.bias", ("heads",), "bias"),
    Parameter("encoder.layer.{layer}.attention.output.dense.weight", ("hidden", "heads"), "matrix"),
    Parameter("encoder.layer.{layer}.attention.output.dense.bias", ("hidden",), "bias"),
    Parameter("encoder.layer.{layer}.attention.output.LayerNorm.weight", ("hidden",), "norm"),
    Parameter("encoder.layer.{layer}.attention.output.LayerNorm.bias", ("hidden",), "norm"),
    Parameter("encoder.layer.{layer}.intermediate.dense.weight", ("neurons", "hidden"), "matrix"),
    Parameter("encoder.layer.{layer}.intermediate.dense.bias", ("neurons",), "bias"),
    Parameter("encoder.layer.{layer}.output.dense.weight", ("hidden", "neurons"), "matrix"),
    Parameter("encoder.layer.{layer}.output.dense.bias", ("hidden",), "bias"),
    Parameter("encoder.layer.{layer}.output.LayerNorm.weight", ("hidden",), "norm"),
    Parameter("encoder.layer.{layer}.output.LayerNorm.bias", ("hidden",), "norm"),
)


def activation_of(config: Mapping[str, Any], field: str = "hidden_act") -> ActivationKind:
    """The activation that a configuration names.

    Raises:
        StudentError: an activation that no exporter has.
    """
    name = config.get(field, "gelu")
    if name not in ACTIVATIONS:
        raise StudentError(f"config.json has {field} {name!r}, which is not supported; these are: {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def encode_layers(graph: GraphBuilder, shape: Shape, x: Value, mask: Value, prefix: str, first_token_only: bool) -> Value:
    """Run all layers on ``x`` ``[B, T, hidden]``.

    With ``first_token_only`` the last layer computes keys and values for all tokens but everything else for the
    first token alone, which is all that a classifier reads: ``[B, 1, hidden]``, the very same numbers.
    """
    for layer in range(shape.layers):
        path, site = f"{prefix}encoder.layer.{layer}", f"layer.{layer}"
        names = tuple(f"{path}.attention.self.{part}" for part in ("query", "key", "value"))
        if first_token_only and layer == shape.layers - 1 and not graph.whole_layers:
            key, value = graph.linears(x, names[1:], f"{site}.qkv")
            x = graph.token(x, 0)
            (query,) = graph.linears(x, names[:1], f"{site}.qkv")
        else:
            query, key, value = graph.linears(x, names, f"{site}.qkv")
        context = graph.attention(query, key, value, mask, shape.heads)
        attended = graph.linear(context, f"{path}.attention.output.dense", f"{site}.attention_output")
        x = graph.layer_norm(attended, f"{path}.attention.output.LayerNorm", shape.eps, residual=x)
        inner = graph.linear(x, f"{path}.intermediate.dense", f"{site}.feed_forward_in", shape.activation)
        outer = graph.linear(inner, f"{path}.output.dense", f"{site}.feed_forward_out")
        x = graph.layer_norm(outer, f"{path}.output.LayerNorm", shape.eps, residual=x)
        graph.mark_layer(x, layer + 1)
    return x


def read_first_token(graph: GraphBuilder, x: Value) -> Value:
    """The first token of ``[B, T or 1, hidden]``: ``[B, hidden]``."""
    return graph.squeeze_token(graph.token(x, 0))


def read_embedding(graph: GraphBuilder, x: Value, mask: Value) -> None:
    """Output ``embedding`` ``[B, hidden]``: mean over the tokens, of length 1."""
    graph.output("embedding", graph.l2_normalize(graph.mean_pool(x, mask)))


def wants_first_token(task: Task) -> bool:
    """Whether the task's head reads the first token alone."""
    return task == "classify"

"""GPT-2 (``model_type`` gpt2; DistilGPT2 too): pre-norm layers with learned positions and joined projections.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019). Its weights are stored ``[in, out]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import StudentError
from ..anatomy import Anatomy, Parameter, Role, Shape, Task
from ..decoder_graph import Attention, DecoderBuilder, Norm
from ..graph import Value
from .bert_layers import activation_of
from .decoder_layers import HEAD, IGNORED

PREFIX = "transformer."

LAYER = "h.{layer}."

REFUSED = ("scale_attn_by_inverse_layer_idx", "add_cross_attention")
"""Options that change the program: scores that depend on a layer's number would change when layers leave."""


def _shape(config: Mapping[str, Any]) -> Shape:
    for field in REFUSED:
        if config.get(field):
            raise StudentError(f"config.json has {field}; GPT-2 is served without it, as it was published")
    hidden = config["n_embd"]
    return Shape(
        layers=config["n_layer"],
        hidden=hidden,
        heads=config["n_head"],
        kv_heads=config["n_head"],
        neurons=config.get("n_inner") or 4 * hidden,
        vocabulary=config["vocab_size"],
        positions=config.get("n_positions", 1024),
        embedding=hidden,
        labels=0,
        activation=activation_of({"activation_function": "gelu_new", **config}, "activation_function"),
        eps=config.get("layer_norm_epsilon", 1e-5),
        variant=() if config.get("scale_attn_weights", True) else ("unscaled",),
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def _forward(graph: DecoderBuilder, shape: Shape, task: Task) -> None:
    x = graph.add(
        graph.embedding(graph.token_ids(), f"{PREFIX}wte"),
        graph.position_embedding(f"{PREFIX}wpe"),
    )
    graph.mark_layer(x, 0)
    normal = graph.norm(x, _norm(f"{LAYER.format(layer=0)}ln_1", shape))
    for layer in range(shape.layers):
        path, site = PREFIX + LAYER.format(layer=layer), f"layer.{layer}"
        x, normal = graph.add_norm(x, _attend(graph, shape, normal, layer), _norm(f"{path}ln_2", shape))
        inner = graph.linear(normal, f"{path}mlp.c_fc", f"{site}.feed_forward_in", shape.activation)
        update = graph.linear(inner, f"{path}mlp.c_proj", f"{site}.feed_forward_out")
        last = layer == shape.layers - 1
        if last:
            x, update = graph.wanted_tokens(x), graph.wanted_tokens(update)
        x, normal = graph.add_norm(x, update, _norm("ln_f" if last else f"{LAYER.format(layer=layer + 1)}ln_1", shape))
        graph.mark_layer(x, layer + 1)
    graph.output("logits", graph.logits(normal, f"{PREFIX}wte" if shape.tied else "lm_head"))


def _norm(name: str, shape: Shape) -> Norm:
    return Norm(PREFIX + name.removeprefix(PREFIX), shape.eps, "layer")


def _attend(graph: DecoderBuilder, shape: Shape, normal: Value, layer: int) -> Value:
    path, site = PREFIX + LAYER.format(layer=layer), f"layer.{layer}"
    width = shape.heads * shape.head_width
    query, key, value = graph.joined_linear(normal, f"{path}attn.c_attn", (width,) * 3, f"{site}.qkv")
    scale = 1.0 if "unscaled" in shape.variant else shape.head_width**-0.5
    attention = Attention(shape.heads, shape.heads, shape.head_width, scale)
    context = graph.attention(query, key, value, layer, attention)
    return graph.linear(context, f"{path}attn.c_proj", f"{site}.attention_output")


def _linear(name: str, width: Role, out: Role) -> tuple[Parameter, ...]:
    return (
        Parameter(f"{LAYER}{name}.weight", (width, out), "matrix", "in_out"),
        Parameter(f"{LAYER}{name}.bias", (out,), "bias"),
    )


def _norm_parameters(name: str) -> tuple[Parameter, ...]:
    return tuple(Parameter(f"{name}.{part}", ("hidden",), "norm") for part in ("weight", "bias"))


ANATOMY = Anatomy(
    model_type="gpt2",
    parameters=(
        Parameter("wte.weight", ("vocabulary", "hidden"), "table"),
        Parameter("wpe.weight", ("positions", "hidden"), "table"),
        *_norm_parameters("ln_f"),
        *_norm_parameters(f"{LAYER}ln_1"),
        *_norm_parameters(f"{LAYER}ln_2"),
        *_linear("attn.c_attn", "hidden", "joined"),
        *_linear("attn.c_proj", "heads", "hidden"),
        *_linear("mlp.c_fc", "hidden", "neurons"),
        *_linear("mlp.c_proj", "neurons", "hidden"),
    ),
    heads_of={"generate": (HEAD,)},
    prefix=PREFIX,
    config_fields={
        "layers": "n_layer",
        "hidden": "n_embd",
        "heads": "n_head",
        "neurons": "n_inner",
        "vocabulary": "vocab_size",
        "positions": "n_positions",
        "activation": "activation_function",
    },
    shape=_shape,
    forward=_forward,
    architectures={"generate": "GPT2LMHeadModel"},
    layer_prefix=LAYER,
    ignored=IGNORED,
    kind="decoder",
)

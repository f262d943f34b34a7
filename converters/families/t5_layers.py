"""What T5, FLAN-T5 and mT5 have in common: pre-norm layers with relative positions, in an encoder and a decoder.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (2020); the gated
feed-forward of version 1.1 and FLAN-T5: Shazeer, "GLU Variants Improve Transformer" (2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from ...errors import StudentError
from ..anatomy import Anatomy, Parameter, Role, Shape, Task
from ..decoder_graph import Attention, Norm
from ..encoder_decoder_graph import EncoderDecoderBuilder, RelativeBias, SourceAndTarget
from ..graph import ActivationKind, Value
from .bert_layers import activation_of

ENCODER = "encoder.block.{layer}."
DECODER = "decoder.block.{decoder_layer}."
TABLE = "{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
HEAD = "lm_head.weight"
GATED, SCALED = "gated", "scaled"

CONFIG_FIELDS: Mapping[str, str] = {
    "layers": "num_layers",
    "decoder_layers": "num_decoder_layers",
    "hidden": "d_model",
    "heads": "num_heads",
    "head_width": "d_kv",
    "neurons": "d_ff",
    "vocabulary": "vocab_size",
    "activation": "feed_forward_proj",
}

ALIASES: Mapping[str, str] = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
"""Other names that transformers takes for the same sizes."""

POSITIONS = 1 << 16
"""Relative positions set no limit; this one only keeps damaged configurations out."""


DEFAULT_TOKENS = 512
"""Of input, where no tokenizer says how long it may be: what T5 was trained on."""


def t5_shape(config: Mapping[str, Any]) -> Shape:
    """The sizes of a T5's or mT5's configuration.

    Raises:
        KeyError: a field is missing.
        StudentError: a feed-forward or relative positions that are not supported.
    """
    words = str(config.get("feed_forward_proj", "relu")).split("-", 1)
    gated = words[0] == "gated"
    name = words[-1] if gated or len(words) == 1 else "-".join(words)
    activation: ActivationKind = activation_of({"hidden_act": "gelu_new" if gated and name == "gelu" else name})
    buckets, distance = config.get("relative_attention_num_buckets", 32), config.get(
        "relative_attention_max_distance", 128
    )
    if not isinstance(buckets, int) or not isinstance(distance, int) or buckets < 4 or distance <= buckets // 2:
        raise StudentError(
            f"config.json has {buckets!r} relative_attention_num_buckets up to a distance of {distance!r}; "
            "4 buckets or more are expected, and a distance of over half as many"
        )
    layers = config["num_layers"]
    variant = ((GATED,) if gated else ()) + ((SCALED,) if config.get("scale_decoder_outputs") else ())
    heads, neurons = config["num_heads"], config["d_ff"]
    return Shape(
        layers=layers,
        hidden=config["d_model"],
        heads=heads,
        neurons=neurons,
        vocabulary=config["vocab_size"],
        positions=POSITIONS,
        embedding=config["d_model"],
        labels=0,
        activation=activation,
        eps=config.get("layer_norm_epsilon", 1e-6),
        variant=variant,
        width_of_head=config["d_kv"],
        tied=bool(config.get("tie_word_embeddings", True)),
        decoder_layers=config.get("num_decoder_layers") or layers,
        decoder_heads=heads,
        decoder_neurons=neurons,
        relative=(buckets, distance),
    )


def with_one_name(config: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """A configuration without second names of its fields, some of which would keep the sizes that were before pruning.

    A field that is there under its second name alone gets its first.
    """
    other = {field: config[alias] for alias, field in aliases.items() if alias in config and field not in config}
    return {**{name: value for name, value in config.items() if name not in aliases}, **other}


def settle(config: dict[str, Any], state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Say in the configuration what transformers reads off the weights: whether the head is the embedding table.

    The original T5 multiplies what enters a head by ``d_model ** -0.5``, version 1.1, FLAN-T5 and mT5 do not;
    old configurations tell them by ``tie_word_embeddings``.

    Raises:
        StudentError: encoder or decoder has embeddings of its own.
    """
    config, state = with_one_name(config, ALIASES), dict(state)
    scales = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    config["scale_decoder_outputs"] = bool(scales) and config.get("model_type") == "t5"
    table = next((state[name] for name in ("shared.weight", *COPIES) if name in state), None)
    head = state.get(HEAD)
    if table is not None:
        state["shared.weight"] = table
        for name in COPIES:
            if name in state and not _equal(state[name], table):
                raise StudentError(f"the weights have {name} apart from shared.weight, and halves share one table here")
    tied = head is None or (table is not None and _equal(head, table))
    config["tie_word_embeddings"] = tied
    for name in (*COPIES, HEAD) if tied else COPIES:
        state.pop(name, None)
    return config, state


COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""Names under which checkpoints hold the shared table once more."""


IGNORED = (r"decoder\.block\.\d+\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
"""In the original checkpoints; attention to the source has no use for it."""


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _is_gated(shape: Shape) -> bool:
    return GATED in shape.variant


def _is_plain(shape: Shape) -> bool:
    return GATED not in shape.variant


def _is_untied(shape: Shape) -> bool:
    return not shape.tied


def _half(start: str, half: Literal["encoder", "decoder"]) -> list[Parameter]:
    """The tensors of one half."""
    own: tuple[Role, Role, Role] = (
        ("heads", "head", "neurons") if half == "encoder" else ("decoder_heads", "decoder_head", "decoder_neurons")
    )
    heads, head, neurons = own
    blocks: list[tuple[str, str, Role]] = [("layer.0.", "SelfAttention", heads)]
    if half == "decoder":
        blocks.append(("layer.1.", "EncDecAttention", "cross_heads"))
    found = []
    for place, attention, role in blocks:
        for part in "qkv":
            found.append(Parameter(f"{start}{place}{attention}.{part}.weight", (role, "hidden"), "matrix"))
        found.append(Parameter(f"{start}{place}{attention}.o.weight", ("hidden", role), "matrix"))
        found.append(Parameter(f"{start}{place}layer_norm.weight", ("hidden",), "norm"))
    place = f"{start}layer.{len(blocks)}."
    for name, when in (("wi", _is_plain), ("wi_0", _is_gated), ("wi_1", _is_gated)):
        found.append(Parameter(f"{place}DenseReluDense.{name}.weight", (neurons, "hidden"), "matrix", when=when))
    found.append(Parameter(f"{place}DenseReluDense.wo.weight", ("hidden", neurons), "matrix"))
    found.append(Parameter(f"{place}layer_norm.weight", ("hidden",), "norm"))
    found.append(Parameter(TABLE.format(half=half), ("fixed", head), "vector"))
    found.append(Parameter(f"{half}.final_layer_norm.weight", ("hidden",), "norm"))
    return found


def encode(graph: EncoderDecoderBuilder, shape: Shape) -> None:
    """Read the source, and leave keys and values of it for every layer of the decoder."""
    x = graph.embedding(graph.source_ids(), "shared")
    graph.mark_layer(x, 0)
    attention = _attention(shape, "encoder")
    normal = graph.norm(x, _norm("encoder.block.0.layer.0", shape))
    for layer in range(shape.layers):
        path, site = ENCODER.format(layer=layer), f"encoder.{layer}"
        query, key, value = _queries(graph, normal, f"{path}layer.0.SelfAttention", f"{site}.qkv")
        context = graph.source_attention(query, key, value, layer, attention)
        update = graph.linear(context, f"{path}layer.0.SelfAttention.o", f"{site}.attention_output")
        x, normal = graph.add_norm(x, update, _norm(f"{path}layer.1", shape))
        update = _feed_forward(graph, shape, normal, f"{path}layer.1.DenseReluDense", site)
        last = layer == shape.layers - 1
        following = "encoder.final" if last else f"{ENCODER.format(layer=layer + 1)}layer.0"
        x, normal = graph.add_norm(x, update, _norm(following, shape))
        graph.mark_layer(x, layer + 1)
    for layer in range(shape.decoder_layers):
        path = f"{DECODER.format(decoder_layer=layer)}layer.1.EncDecAttention"
        key, value = graph.linears(normal, (f"{path}.k", f"{path}.v"), f"decoder.{layer}.source")
        graph.keep_source(key, value, layer, _attention(shape, None))


def decode(graph: EncoderDecoderBuilder, shape: Shape) -> None:
    """From the tokens written so far to the logits of the next."""
    x = graph.embedding(graph.token_ids(), "shared")
    first = shape.layers + 1
    graph.mark_layer(x, first)
    own, cross = _attention(shape, "decoder"), _attention(shape, None)
    normal = graph.norm(x, _norm("decoder.block.0.layer.0", shape))
    for layer in range(shape.decoder_layers):
        path, site = DECODER.format(decoder_layer=layer), f"decoder.{layer}"
        query, key, value = _queries(graph, normal, f"{path}layer.0.SelfAttention", f"{site}.qkv")
        context = graph.attention(query, key, value, layer, own)
        update = graph.linear(context, f"{path}layer.0.SelfAttention.o", f"{site}.attention_output")
        x, normal = graph.add_norm(x, update, _norm(f"{path}layer.1", shape))
        query = graph.linear(normal, f"{path}layer.1.EncDecAttention.q", f"{site}.cross_query")
        context = graph.cross_attention(query, layer, cross)
        update = graph.linear(context, f"{path}layer.1.EncDecAttention.o", f"{site}.cross_output")
        x, normal = graph.add_norm(x, update, _norm(f"{path}layer.2", shape))
        update = _feed_forward(graph, shape, normal, f"{path}layer.2.DenseReluDense", site)
        last = layer == shape.decoder_layers - 1
        if last:
            x, update = graph.wanted_tokens(x), graph.wanted_tokens(update)
        following = "decoder.final" if last else f"{DECODER.format(decoder_layer=layer + 1)}layer.0"
        x, normal = graph.add_norm(x, update, _norm(following, shape))
        graph.mark_layer(x, first + layer + 1)
    if SCALED in shape.variant:
        normal = graph.scale(normal, shape.hidden**-0.5)
    graph.output("logits", graph.logits(normal, "shared" if shape.tied else "lm_head"))


def _norm(path: str, shape: Shape) -> Norm:
    """The norm of a sublayer (``….layer_norm``), or of a whole half (``….final_layer_norm``)."""
    return Norm(f"{path}_layer_norm" if path.endswith(".final") else f"{path}.layer_norm", shape.eps)


def _attention(shape: Shape, half: Literal["encoder", "decoder"] | None) -> Attention:
    """Self-attention of a half; None: cross-attention, which knows no positions. Scores are not scaled."""
    relative = None
    if half is not None and shape.relative is not None:
        relative = RelativeBias(TABLE.format(half=half), *shape.relative, bidirectional=half == "encoder")
    return Attention(shape.heads, shape.heads, shape.head_width, 1.0, relative=relative)


def _queries(graph: EncoderDecoderBuilder, x: Value, path: str, site: str) -> tuple[Value, ...]:
    return graph.linears(x, tuple(f"{path}.{part}" for part in "qkv"), site)


def _feed_forward(graph: EncoderDecoderBuilder, shape: Shape, x: Value, path: str, site: str) -> Value:
    if GATED in shape.variant:
        gate, up = graph.linears(x, (f"{path}.wi_0", f"{path}.wi_1"), f"{site}.feed_forward_in")
        inner = graph.gate(gate, up, shape.activation)
    else:
        inner = graph.linear(x, f"{path}.wi", f"{site}.feed_forward_in", shape.activation)
    return graph.linear(inner, f"{path}.wo", f"{site}.feed_forward_out")


def run_both(graph: EncoderDecoderBuilder, shape: Shape, task: Task) -> None:
    """The whole of it, source to logits."""
    encode(graph, shape)
    decode(graph, shape)


def _width_power(name: str, shape: Shape) -> int:
    """What enters the head is divided by the root of the width; the norm before it makes up for another one."""
    return int(SCALED in shape.variant and name == "decoder.final_layer_norm.weight")


def t5_anatomy(model_type: str, architecture: str) -> Anatomy:
    """The anatomy of T5 or of kin that differs by its name alone."""
    shared = Parameter("shared.weight", ("vocabulary", "hidden"), "table")
    return Anatomy(
        model_type=model_type,
        parameters=(shared, *_half(ENCODER, "encoder"), *_half(DECODER, "decoder")),
        heads_of={"summarize": (Parameter(HEAD, ("vocabulary", "hidden"), "matrix", when=_is_untied),)},
        prefix="",
        config_fields=CONFIG_FIELDS,
        shape=t5_shape,
        forward=run_both,
        architectures={"summarize": architecture},
        layer_prefix=ENCODER,
        kind="encoder-decoder",
        own_head_width=True,
        heads_divide_hidden=False,
        halves=SourceAndTarget(encode, decode),
        decoder_prefix=DECODER,
        settle=settle,
        ignored=IGNORED,
        default_tokens=DEFAULT_TOKENS,
        width_power=_width_power,
    )

"""What BART and Marian have in common: post-norm layers with absolute positions, in an encoder and a decoder.

Lewis et al., "BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation" (2020);
Junczys-Dowmunt et al., "Marian: Fast Neural Machine Translation in C++" (2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...errors import StudentError
from ..anatomy import Parameter, Role, Shape, Task
from ..decoder_graph import Attention, Norm
from ..encoder_decoder_graph import EncoderDecoderBuilder, SourceAndTarget
from ..graph import Value
from .bert_layers import activation_of, linear_parameters, norm_parameters
from .t5_layers import with_one_name

PREFIX = "model."
ENCODER = "encoder.layers.{layer}."
DECODER = "decoder.layers.{decoder_layer}."
SHARED = "model.shared.weight"
TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
"""The embedding tables of source and target, or two copies of the shared one."""
HEAD = "lm_head.weight"
LOGITS_BIAS = "final_logits_bias"
SCALED, APART = "scaled", "apart"

EPS = 1e-5
"""What layer norms add to the variance; no configuration has it."""

Half = Literal["encoder", "decoder"]

CONFIG_FIELDS: Mapping[str, str] = {
    "layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "hidden": "d_model",
    "heads": "encoder_attention_heads",
    "decoder_heads": "decoder_attention_heads",
    "neurons": "encoder_ffn_dim",
    "decoder_neurons": "decoder_ffn_dim",
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "activation": "activation_function",
}

ALIASES: Mapping[str, str] = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
"""Other names that transformers takes for the same sizes; published checkpoints have both."""

SHARES = "share_encoder_decoder_embeddings"
"""Whether source and target have one embedding table: Marian's field, and what ``settle_tables`` tells of a BART."""


def bart_shape(config: Mapping[str, Any], rows_before: int) -> Shape:
    """The sizes of a BART's or Marian's configuration; ``rows_before``: rows of its positions that no token has.

    Raises:
        KeyError: a field is missing.
        StudentError: an activation that no exporter has, or heads that do not divide the width.
    """
    hidden, heads, decoder_heads = (
        config[field] for field in ("d_model", "encoder_attention_heads", "decoder_attention_heads")
    )
    for count in (heads, decoder_heads):
        if not isinstance(count, int) or count < 1 or hidden % count:
            raise StudentError(f"config.json has {count!r} attention heads, which do not divide d_model {hidden}")
    variant = ((SCALED,) if config.get("scale_embedding") else ()) + (() if config.get(SHARES, True) else (APART,))
    return Shape(
        layers=config["encoder_layers"],
        hidden=hidden,
        heads=heads,
        neurons=config["encoder_ffn_dim"],
        vocabulary=config["vocab_size"],
        positions=config.get("max_position_embeddings", 1024) + rows_before,
        embedding=hidden,
        labels=0,
        activation=activation_of(config, "activation_function"),
        eps=EPS,
        position_offset=rows_before,
        variant=variant,
        tied=bool(config.get("tie_word_embeddings", True)),
        decoder_layers=config["decoder_layers"],
        decoder_heads=decoder_heads,
        decoder_neurons=config["decoder_ffn_dim"],
    )


def settle_tables(
    config: dict[str, Any], state: dict[str, Any], ties_target: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One name for each table of embeddings, a head only where it is one of its own, and a bias on the logits.

    ``ties_target``: where source and target have tables of their own, the target's may be the head too (Marian).

    Raises:
        StudentError: a bias of another length than the vocabulary.
    """
    config, state = with_one_name(config, ALIASES), {_full(name): tensor for name, tensor in state.items()}
    source, target = (state.pop(name, None) for name in TABLES)
    apart = source is not None and target is not None and not _equal(source, target)
    apart = apart or config.get(SHARES) is False
    if apart:
        config[SHARES] = False
        shared = state.pop(SHARED, None)
        source, target = (shared if table is None else table for table in (source, target))
        for name, table in zip(TABLES, (source, target), strict=True):
            if table is not None:
                state[name] = table
    else:
        config.pop(SHARES, None)
        target = next((table for table in (state.get(SHARED), source, target) if table is not None), None)
        if target is not None:
            state[SHARED] = target
    head = state.get(HEAD)
    tied = head is None or (target is not None and _equal(head, target))
    config["tie_word_embeddings"] = tied and (ties_target or not apart)
    if config["tie_word_embeddings"]:
        state.pop(HEAD, None)
    if target is not None:
        bias = state.get(LOGITS_BIAS)
        if bias is None:
            bias = torch.zeros(target.shape[0])
        if bias.numel() != target.shape[0]:
            raise StudentError(f"the weights have a {LOGITS_BIAS} of {bias.numel()} for {target.shape[0]} tokens")
        state[LOGITS_BIAS] = bias.reshape(1, -1)
    return config, state


def _full(name: str) -> str:
    """A tensor's name with the body's prefix, which weights of the body alone do not have."""
    return PREFIX + name if name.startswith(("encoder.", "decoder.", "shared.")) else name


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def is_apart(shape: Shape) -> bool:
    """Whether source and target have embedding tables of their own."""
    return APART in shape.variant


def _is_shared(shape: Shape) -> bool:
    return APART not in shape.variant


def is_untied(shape: Shape) -> bool:
    """Whether the output head is a matrix of its own."""
    return not shape.tied


def table_copies(shape: Shape) -> dict[str, str]:
    """Names under which transformers looks for the shared table where nothing is tied, and whose copies they are."""
    return dict.fromkeys(TABLES, SHARED) if is_untied(shape) and not is_apart(shape) else {}


BART_TABLES = (
    Parameter(SHARED.removeprefix(PREFIX), ("vocabulary", "hidden"), "table", when=_is_shared),
    *(Parameter(name.removeprefix(PREFIX), ("vocabulary", "hidden"), "table", when=is_apart) for name in TABLES),
)
"""The embedding tables."""

BART_HEADS = (
    Parameter(HEAD, ("vocabulary", "hidden"), "matrix", when=is_untied),
    Parameter(LOGITS_BIAS, ("fixed", "vocabulary"), "vector"),
)
"""What turns hidden states to logits."""


def layer_parameters(half: Half) -> tuple[Parameter, ...]:
    """The tensors of one layer of a half."""
    start = ENCODER if half == "encoder" else DECODER
    heads: Role = "heads" if half == "encoder" else "decoder_heads"
    neurons: Role = "neurons" if half == "encoder" else "decoder_neurons"
    found = [*_attention_parameters(f"{start}self_attn", heads)]
    if half == "decoder":
        found += _attention_parameters(f"{start}encoder_attn", "cross_heads")
    return (
        *found,
        *linear_parameters(f"{start}fc1", neurons, "hidden"),
        *linear_parameters(f"{start}fc2", "hidden", neurons),
        *norm_parameters(f"{start}final_layer_norm", "hidden"),
    )


def _attention_parameters(path: str, heads: Role) -> list[Parameter]:
    found: list[Parameter] = []
    for part in "qkv":
        found += linear_parameters(f"{path}.{part}_proj", heads, "hidden")
    found += linear_parameters(f"{path}.out_proj", "hidden", heads)
    return [*found, *norm_parameters(f"{path}_layer_norm", "hidden")]


@dataclass(frozen=True)
class Programs:
    """The two programs of BART or Marian.

    ``positions``: the table of positions of source and of target, by their paths; ``norms_embeddings``: embeddings
    are normalised before the first layer (BART).
    """

    positions: tuple[str, str]
    norms_embeddings: bool

    @property
    def halves(self) -> SourceAndTarget:
        """Both, as an anatomy holds them."""
        return SourceAndTarget(self.encode, self.decode)

    def encode(self, graph: EncoderDecoderBuilder, shape: Shape) -> None:
        """Read the source, and leave keys and values of it for every layer of the decoder."""
        x = self._embedded(graph, shape, "encoder")
        graph.mark_layer(x, 0)
        attention = _attention(shape, "encoder")
        for layer in range(shape.layers):
            path, site = PREFIX + ENCODER.format(layer=layer), f"encoder.{layer}"
            query, key, value = _queries(graph, x, f"{path}self_attn", f"{site}.qkv")
            context = graph.source_attention(query, key, value, layer, attention)
            update = graph.linear(context, f"{path}self_attn.out_proj", f"{site}.attention_output")
            x = graph.add_norm(x, update, _norm(f"{path}self_attn_layer_norm", shape))[1]
            update = _feed_forward(graph, shape, x, path, site)
            x = graph.add_norm(x, update, _norm(f"{path}final_layer_norm", shape))[1]
            graph.mark_layer(x, layer + 1)
        for layer in range(shape.decoder_layers):
            path = f"{PREFIX}{DECODER.format(decoder_layer=layer)}encoder_attn"
            key, value = graph.linears(x, (f"{path}.k_proj", f"{path}.v_proj"), f"decoder.{layer}.source")
            graph.keep_source(key, value, layer, _attention(shape, "decoder"))

    def decode(self, graph: EncoderDecoderBuilder, shape: Shape) -> None:
        """From the tokens written so far to the logits of the next."""
        x = self._embedded(graph, shape, "decoder")
        first = shape.layers + 1
        graph.mark_layer(x, first)
        attention = _attention(shape, "decoder")
        for layer in range(shape.decoder_layers):
            path, site = PREFIX + DECODER.format(decoder_layer=layer), f"decoder.{layer}"
            query, key, value = _queries(graph, x, f"{path}self_attn", f"{site}.qkv")
            context = graph.attention(query, key, value, layer, attention)
            update = graph.linear(context, f"{path}self_attn.out_proj", f"{site}.attention_output")
            x = graph.add_norm(x, update, _norm(f"{path}self_attn_layer_norm", shape))[1]
            query = graph.linear(x, f"{path}encoder_attn.q_proj", f"{site}.cross_query")
            context = graph.cross_attention(query, layer, attention)
            update = graph.linear(context, f"{path}encoder_attn.out_proj", f"{site}.cross_output")
            x = graph.add_norm(x, update, _norm(f"{path}encoder_attn_layer_norm", shape))[1]
            update = _feed_forward(graph, shape, x, path, site)
            if layer == shape.decoder_layers - 1:
                x, update = graph.wanted_tokens(x), graph.wanted_tokens(update)
            x = graph.add_norm(x, update, _norm(f"{path}final_layer_norm", shape))[1]
            graph.mark_layer(x, first + layer + 1)
        head = _table(shape, "decoder") if shape.tied else HEAD.removesuffix(".weight")
        graph.output("logits", graph.add_vector(graph.logits(x, head), LOGITS_BIAS))

    def both(self, graph: EncoderDecoderBuilder, shape: Shape, task: Task) -> None:
        """The whole of it, source to logits."""
        self.encode(graph, shape)
        self.decode(graph, shape)

    def _embedded(self, graph: EncoderDecoderBuilder, shape: Shape, half: Half) -> Value:
        """Token embeddings and positions: ``[B, T, hidden]``."""
        reads = half == "encoder"
        x = graph.embedding(graph.source_ids() if reads else graph.token_ids(), _table(shape, half))
        if SCALED in shape.variant:
            x = graph.scale(x, shape.hidden**0.5)
        take = graph.source_position_embedding if reads else graph.position_embedding
        x = graph.add(x, take(self.positions[0 if reads else 1], shape.position_offset))
        if self.norms_embeddings:
            x = graph.norm(x, _norm(f"{PREFIX}{half}.layernorm_embedding", shape))
        return x


def _table(shape: Shape, half: Half) -> str:
    name = TABLES[0 if half == "encoder" else 1] if is_apart(shape) else SHARED
    return name.removesuffix(".weight")


def _norm(name: str, shape: Shape) -> Norm:
    return Norm(name, shape.eps, "layer")


def _attention(shape: Shape, half: Half) -> Attention:
    heads = shape.heads if half == "encoder" else shape.decoder_heads
    width = shape.hidden // heads
    return Attention(heads, heads, width, width**-0.5)


def _queries(graph: EncoderDecoderBuilder, x: Value, path: str, site: str) -> tuple[Value, ...]:
    return graph.linears(x, tuple(f"{path}.{part}_proj" for part in "qkv"), site)


def _feed_forward(graph: EncoderDecoderBuilder, shape: Shape, x: Value, path: str, site: str) -> Value:
    inner = graph.linear(x, f"{path}fc1", f"{site}.feed_forward_in", shape.activation)
    return graph.linear(inner, f"{path}fc2", f"{site}.feed_forward_out")

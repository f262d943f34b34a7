"""What Llama and its kin have in common: pre-norm layers of rotary grouped attention and a gated feed-forward.

Touvron et al., "Llama 2" (2023). Other families differ by a :class:`DecoderStyle`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import StudentError
from ..anatomy import Parameter, Role, Shape, Task
from ..decoder_graph import Attention, DecoderBuilder, Norm, Rotary
from ..graph import Value
from .bert_layers import activation_of

PREFIX = "model."

LAYER = PREFIX + "layers.{layer}."


@dataclass(frozen=True)
class DecoderStyle:
    """How a family departs from Llama.

    Attributes:
        norm_offset: added to the gain of every RMS norm (Gemma: 1).
        head_norms: whether queries and keys are normalised head by head before they are rotated (Qwen3).
        scales_embeddings: whether embeddings are multiplied by the root of the hidden width (Gemma).
    """

    norm_offset: float = 0.0
    head_norms: bool = False
    scales_embeddings: bool = False


LLAMA = DecoderStyle()

IGNORED = (r".*rotary_emb\.inv_freq", r".*attn\.(masked_)?bias")
"""Buffers that old checkpoints hold beside the weights."""

CONFIG_FIELDS: Mapping[str, str] = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "neurons": "intermediate_size",
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "activation": "hidden_act",
}
"""Where Llama's configuration, and that of its kin, has its sizes."""


def decoder_shape(config: Mapping[str, Any], windows: bool = True, **others: Any) -> Shape:
    """The sizes of a configuration that names its fields as Llama does; ``others`` are set beside or instead.

    ``windows``: as ``usual`` of :func:`refuse_windows`.

    Raises:
        KeyError: a field is missing.
        StudentError: an activation, window or scaling of positions that no exporter has.
    """
    refuse_windows(config, windows)
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    width = config.get("head_dim") or hidden // max(1, heads)
    fields: dict[str, Any] = {
        "layers": config["num_hidden_layers"],
        "hidden": hidden,
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "width_of_head": width,
        "neurons": config["intermediate_size"],
        "vocabulary": config["vocab_size"],
        "positions": config.get("max_position_embeddings", 2048),
        "embedding": hidden,
        "labels": 0,
        "activation": activation_of({"hidden_act": "silu", **config}),
        "eps": config.get("rms_norm_eps", 1e-6),
        "rotary": rotary_of(config, width),
        "tied": bool(config.get("tie_word_embeddings", False)),
    }
    shape = Shape(**{**fields, **others})
    if shape.kv_heads < 1 or shape.heads % shape.kv_heads:
        raise StudentError(
            f"config.json has {shape.heads} heads and {shape.kv_heads} key/value heads, which do not divide them"
        )
    return shape


def refuse_windows(config: Mapping[str, Any], usual: bool = True) -> None:
    """Refuse attention that sees only a window of the tokens before, where it would be used.

    ``usual``: whether a configuration that has a window and does not say so uses it.

    Raises:
        StudentError: it would.
    """
    window = config.get("sliding_window")
    kinds = config.get("layer_types") or ()
    used = config.get("use_sliding_window", usual) if not kinds else "sliding_attention" in kinds
    positions = config.get("max_position_embeddings") or 0
    if window and used and window < positions:
        raise StudentError(
            f"config.json asks for sliding-window attention over {window} tokens, which is not supported. Where texts "
            f"stay shorter than that, set max_position_embeddings to {window} and sliding_window to null"
        )


def rotary_of(config: Mapping[str, Any], width: int) -> Rotary:
    """The rotary frequencies of a configuration (Llama 3's and linear scaling worked in).

    Raises:
        StudentError: a kind of scaling that is not known.
    """
    given = config.get("rope_parameters") or {}
    scaling = {**(config.get("rope_scaling") or {}), **given}
    base = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    rotated = int(width * float(scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0))
    if not base > 1 or not math.isfinite(base):
        raise StudentError(f"config.json has a rope_theta of {base}, where a number over 1 is expected")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if rotated != width or width % 2:
        raise StudentError(f"config.json turns {rotated} of each head's {width} units by rotary positions; all or none")
    frequencies = [base ** (-2 * i / width) for i in range(width // 2)]
    if kind == "linear":
        frequencies = [each / float(scaling["factor"]) for each in frequencies]
    elif kind == "llama3":
        frequencies = [_llama3(each, scaling) for each in frequencies]
    elif kind != "default":
        raise StudentError(f"config.json scales rotary positions by {kind!r}; supported are default, linear and llama3")
    return Rotary(tuple(frequencies))


def _llama3(frequency: float, scaling: Mapping[str, Any]) -> float:
    """Llama 3.1's scaling: slow waves are stretched by ``factor``, fast ones kept, those between blended."""
    factor, low, high = (float(scaling[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    old = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / frequency
    if wavelength < old / high:
        return frequency
    if wavelength > old / low:
        return frequency / factor
    blend = (old / wavelength - low) / (high - low)
    return (1 - blend) * frequency / factor + blend * frequency


LLAMA3_SCALING = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def llama3_scaling(divisors: Sequence[float], base: float, width: int) -> dict[str, Any] | None:
    """``rope_parameters`` of Llama 3's scaling that divides the frequencies by ``divisors`` ``[D / 2]``; None if no
    such scaling of a published model does (the parameters are those of Llama 3.1 to 3.3 but for the factor)."""
    given = {"rope_theta": base, "factor": float(max(divisors)), "original_max_position_embeddings": 8192}
    scaling = {**LLAMA3_SCALING, **given}
    plain = rotary_of({"rope_theta": base}, width).frequencies
    scaled = rotary_of({"rope_parameters": scaling}, width).frequencies
    expected = [each / other for each, other in zip(plain, scaled, strict=True)]
    near = len(expected) == len(divisors) and all(
        math.isclose(each, other, rel_tol=1e-3) for each, other in zip(expected, divisors, strict=True)
    )
    return scaling if near else None


def decoder_parameters(style: DecoderStyle = LLAMA, attention_bias: tuple[str, ...] = ()) -> tuple[Parameter, ...]:
    """The tensors of the body, named as Llama's. ``attention_bias``: which of q, k, v, o always have a bias."""
    start = LAYER.removeprefix(PREFIX)
    found = [
        Parameter("embed_tokens.weight", ("vocabulary", "hidden"), "table"),
        Parameter("norm.weight", ("hidden",), "norm"),
        Parameter(start + "input_layernorm.weight", ("hidden",), "norm"),
        Parameter(start + "post_attention_layernorm.weight", ("hidden",), "norm"),
    ]
    axes: dict[str, tuple[Role, Role]] = {
        "q": ("heads", "hidden"), "k": ("kv_heads", "hidden"), "v": ("kv_heads", "hidden"), "o": ("hidden", "heads"),
    }  # fmt: skip
    for part, (out, width) in axes.items():
        found.append(Parameter(f"{start}self_attn.{part}_proj.weight", (out, width), "matrix"))
        when = None if part in attention_bias else _has_attention_bias
        found.append(Parameter(f"{start}self_attn.{part}_proj.bias", (out,), "bias", when=when))
    if style.head_norms:
        found += [Parameter(f"{start}self_attn.{part}_norm.weight", ("head_width",), "norm") for part in "qk"]
    for part in ("gate", "up"):
        found.append(Parameter(f"{start}mlp.{part}_proj.weight", ("neurons", "hidden"), "matrix"))
        found.append(Parameter(f"{start}mlp.{part}_proj.bias", ("neurons",), "bias", when=_has_mlp_bias))
    found.append(Parameter(f"{start}mlp.down_proj.weight", ("hidden", "neurons"), "matrix"))
    found.append(Parameter(f"{start}mlp.down_proj.bias", ("hidden",), "bias", when=_has_mlp_bias))
    return tuple(found)


def _has_attention_bias(shape: Shape) -> bool:
    return "attention_bias" in shape.variant


def _has_mlp_bias(shape: Shape) -> bool:
    return "mlp_bias" in shape.variant


def _is_untied(shape: Shape) -> bool:
    return not shape.tied


HEAD = Parameter("lm_head.weight", ("vocabulary", "hidden"), "matrix", when=_is_untied)
"""The output head, where it is not the embedding table."""


def bias_variants(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of Llama's optional biases a configuration has."""
    return tuple(name for name in ("attention_bias", "mlp_bias") if config.get(name))


def decode(graph: DecoderBuilder, shape: Shape, style: DecoderStyle = LLAMA) -> None:
    """The whole forward pass, from tokens to logits."""
    x = graph.embedding(graph.token_ids(), "model.embed_tokens")
    if style.scales_embeddings:
        x = graph.scale(x, shape.hidden**0.5)
    graph.mark_layer(x, 0)
    normal = graph.norm(x, _norm("model.layers.0.input_layernorm", shape, style))
    for layer in range(shape.layers):
        path, site = LAYER.format(layer=layer), f"layer.{layer}"
        update = _attend(graph, shape, style, normal, layer)
        x, normal = graph.add_norm(x, update, _norm(f"{path}post_attention_layernorm", shape, style))
        gate, up = graph.linears(normal, (f"{path}mlp.gate_proj", f"{path}mlp.up_proj"), f"{site}.feed_forward_in")
        gated = graph.gate(gate, up, shape.activation)
        update = graph.linear(gated, f"{path}mlp.down_proj", f"{site}.feed_forward_out")
        last = layer == shape.layers - 1
        if last:
            x, update = graph.wanted_tokens(x), graph.wanted_tokens(update)
        following = "model.norm" if last else LAYER.format(layer=layer + 1) + "input_layernorm"
        x, normal = graph.add_norm(x, update, _norm(following, shape, style))
        graph.mark_layer(x, layer + 1)
    graph.output("logits", graph.logits(normal, "model.embed_tokens" if shape.tied else "lm_head"))


def _norm(name: str, shape: Shape, style: DecoderStyle) -> Norm:
    return Norm(name, shape.eps, "rms", style.norm_offset)


def _attend(graph: DecoderBuilder, shape: Shape, style: DecoderStyle, normal: Value, layer: int) -> Value:
    path, site = f"{LAYER.format(layer=layer)}self_attn.", f"layer.{layer}"
    query, key, value = graph.linears(normal, tuple(f"{path}{part}_proj" for part in "qkv"), f"{site}.qkv")
    if style.head_norms:
        query = graph.head_norm(query, Norm(f"{path}q_norm", shape.eps), shape.heads)
        key = graph.head_norm(key, Norm(f"{path}k_norm", shape.eps), shape.kv_heads)
    attention = Attention(shape.heads, shape.kv_heads, shape.head_width, shape.head_width**-0.5, shape.rotary)
    context = graph.attention(query, key, value, layer, attention)
    return graph.linear(context, f"{path}o_proj", f"{site}.attention_output")


def run_llama(graph: DecoderBuilder, shape: Shape, task: Task) -> None:
    """Llama's own program."""
    decode(graph, shape)

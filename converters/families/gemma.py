"""Gemma (``model_type`` gemma): Llama's layers, with scaled embeddings, norm gains counted from 1, and wide heads.

Gemma Team, "Gemma: Open Models Based on Gemini Research and Technology" (2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import StudentError
from ..anatomy import Anatomy, Shape, Task
from ..decoder_graph import DecoderBuilder
from .decoder_layers import (
    CONFIG_FIELDS,
    HEAD,
    IGNORED,
    LAYER,
    PREFIX,
    DecoderStyle,
    bias_variants,
    decode,
    decoder_parameters,
    decoder_shape,
)

STYLE = DecoderStyle(norm_offset=1.0, scales_embeddings=True)

USUAL = {"head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True}
"""What transformers takes for fields that a configuration leaves out."""


def _shape(config: Mapping[str, Any]) -> Shape:
    if config.get("use_bidirectional_attention"):
        raise StudentError("config.json asks for use_bidirectional_attention; writers attend to what was before alone")
    # The first releases say "gelu" and mean its approximation; transformers reads them so.
    named = config.get("hidden_act") or "gelu"
    activation = "gelu_pytorch_tanh" if named == "gelu" else named
    return decoder_shape({**USUAL, **config, "hidden_act": activation}, variant=bias_variants(config)[:1])


def _forward(graph: DecoderBuilder, shape: Shape, task: Task) -> None:
    decode(graph, shape, STYLE)


ANATOMY = Anatomy(
    model_type="gemma",
    parameters=decoder_parameters(STYLE),
    heads_of={"generate": (HEAD,)},
    prefix=PREFIX,
    config_fields=CONFIG_FIELDS,
    shape=_shape,
    forward=_forward,
    architectures={"generate": "GemmaForCausalLM"},
    layer_prefix=LAYER,
    ignored=IGNORED,
    kind="decoder",
    scales_embeddings=STYLE.scales_embeddings,
    own_head_width=True,
    heads_divide_hidden=False,
)

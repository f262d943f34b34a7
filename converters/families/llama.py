"""Llama (``model_type`` llama): SmolLM2, TinyLlama, LiteLlama and most small writers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..anatomy import Anatomy, Shape
from .decoder_layers import CONFIG_FIELDS, LAYER, bias_variants, decoder_parameters, decoder_shape, run_llama


def _shape(config: Mapping[str, Any]) -> Shape:
    return decoder_shape(config, variant=bias_variants(config))


ANATOMY = Anatomy(
    model_type="llama",
    parameters=decoder_parameters(),
    heads_of={"generate": ()},
    prefix="",
    config_fields=CONFIG_FIELDS,
    shape=_shape,
    forward=run_llama,
    architectures={"generate": "LlamaForCausalLM"},
    layer_prefix=LAYER,
    ignored=(r".*rotary_emb\.inv_freq", r"lm_head\.weight"),
)

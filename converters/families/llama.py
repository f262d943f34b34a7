"""Llama (``model_type`` llama): SmolLM2, TinyLlama, LiteLlama and most small writers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..anatomy import Anatomy, Shape
from .decoder_layers import (
    CONFIG_FIELDS,
    HEAD,
    IGNORED,
    LAYER,
    PREFIX,
    bias_variants,
    decoder_parameters,
    decoder_shape,
    run_llama,
)


def _shape(config: Mapping[str, Any]) -> Shape:
    return decoder_shape(config, variant=bias_variants(config))


ANATOMY = Anatomy(
    model_type="llama",
    parameters=decoder_parameters(),
    heads_of={"generate": (HEAD,)},
    prefix=PREFIX,
    config_fields=CONFIG_FIELDS,
    shape=_shape,
    forward=run_llama,
    architectures={"generate": "LlamaForCausalLM"},
    layer_prefix=LAYER,
    ignored=IGNORED,
    kind="decoder",
    own_head_width=True,
)

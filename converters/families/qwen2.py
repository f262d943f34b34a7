"""Qwen2 (``model_type`` qwen2; Qwen2.5 too): Llama's layers, with biases on queries, keys and values.

Yang et al., "Qwen2 Technical Report" (2024).
"""

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
    decoder_parameters,
    decoder_shape,
    run_llama,
)


def _shape(config: Mapping[str, Any]) -> Shape:
    return decoder_shape({"max_position_embeddings": 32768, **config}, windows=False)


ANATOMY = Anatomy(
    model_type="qwen2",
    parameters=decoder_parameters(attention_bias=("q", "k", "v")),
    heads_of={"generate": (HEAD,)},
    prefix=PREFIX,
    config_fields=CONFIG_FIELDS,
    shape=_shape,
    forward=run_llama,
    architectures={"generate": "Qwen2ForCausalLM"},
    layer_prefix=LAYER,
    ignored=IGNORED,
    kind="decoder",
    own_head_width=True,
    heads_divide_hidden=False,
)

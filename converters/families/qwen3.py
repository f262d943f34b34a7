"""Qwen3 (``model_type`` qwen3): Llama's layers, with queries and keys normalised head by head.

Yang et al., "Qwen3 Technical Report" (2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

STYLE = DecoderStyle(head_norms=True)


def _shape(config: Mapping[str, Any]) -> Shape:
    usual = {"max_position_embeddings": 32768, "head_dim": 128}
    return decoder_shape({**usual, **config}, windows=False, variant=bias_variants(config)[:1])


def _forward(graph: DecoderBuilder, shape: Shape, task: Task) -> None:
    decode(graph, shape, STYLE)


ANATOMY = Anatomy(
    model_type="qwen3",
    parameters=decoder_parameters(STYLE),
    heads_of={"generate": (HEAD,)},
    prefix=PREFIX,
    config_fields=CONFIG_FIELDS,
    shape=_shape,
    forward=_forward,
    architectures={"generate": "Qwen3ForCausalLM"},
    layer_prefix=LAYER,
    ignored=IGNORED,
    kind="decoder",
    own_head_width=True,
    heads_divide_hidden=False,
)

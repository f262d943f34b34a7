"""BART (``model_type`` bart): learned positions, embeddings normalised before the first layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..anatomy import Anatomy, Parameter, Shape
from .bart_layers import (
    BART_HEADS,
    BART_TABLES,
    CONFIG_FIELDS,
    DECODER,
    ENCODER,
    PREFIX,
    SCALED,
    SHARED,
    TABLES,
    Programs,
    bart_shape,
    is_apart,
    layer_parameters,
    settle_tables,
    table_copies,
)
from .bert_layers import norm_parameters

ROWS_BEFORE = 2
"""Rows of the tables of positions before that of the first token; the configuration does not count them."""

POSITIONS = ("model.encoder.embed_positions", "model.decoder.embed_positions")

PROGRAMS = Programs(POSITIONS, norms_embeddings=True)


def _shape(config: Mapping[str, Any]) -> Shape:
    return bart_shape(config, ROWS_BEFORE)


def _settle(config: dict[str, Any], state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return settle_tables(config, state, ties_target=False)


def _copies(shape: Shape) -> dict[str, str]:
    # Where the tables are apart transformers has the shared one all the same, and reads it nowhere.
    return {SHARED: TABLES[0]} if is_apart(shape) else table_copies(shape)


def _width_power(name: str, shape: Shape) -> int:
    """Where embeddings are scaled by the width, positions are scaled along; then both are normalised."""
    return int(SCALED in shape.variant and name.removesuffix(".weight") in POSITIONS)


ANATOMY = Anatomy(
    model_type="bart",
    parameters=(
        *BART_TABLES,
        *(
            Parameter(f"{name.removeprefix(PREFIX)}.weight", ("positions", "hidden"), "table")
            for name in POSITIONS
        ),
        *norm_parameters("encoder.layernorm_embedding", "hidden"),
        *norm_parameters("decoder.layernorm_embedding", "hidden"),
        *layer_parameters("encoder"),
        *layer_parameters("decoder"),
    ),
    heads_of={"summarize": BART_HEADS},
    prefix=PREFIX,
    config_fields=CONFIG_FIELDS,
    shape=_shape,
    forward=PROGRAMS.both,
    architectures={"summarize": "BartForConditionalGeneration"},
    layer_prefix=ENCODER,
    kind="encoder-decoder",
    halves=PROGRAMS.halves,
    decoder_prefix=DECODER,
    settle=_settle,
    copies=_copies,
    rows_before=ROWS_BEFORE,
    width_power=_width_power,
)

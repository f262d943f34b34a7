"""Marian (``model_type`` marian): sinusoidal positions, which checkpoints mostly leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import StudentError
from ..anatomy import Anatomy, Parameter, Shape
from .bart_layers import (
    BART_HEADS,
    BART_TABLES,
    CONFIG_FIELDS,
    DECODER,
    ENCODER,
    PREFIX,
    SCALED,
    Programs,
    bart_shape,
    layer_parameters,
    settle_tables,
    table_copies,
)

POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
"""The same sinusoids twice; the program reads the first for source and target."""

PROGRAMS = Programs((POSITIONS[0].removesuffix(".weight"),) * 2, norms_embeddings=False)

LONGEST = 1 << 16
"""Positions for which sinusoids are made; what asks for more is a damaged configuration."""


def sinusoids(positions: int, width: int) -> NDArray[np.float32]:
    """Marian's positions ``[positions, width]``: the sines first, then the cosines."""
    waves = np.arange(width) // 2 * 2 / width
    angles = np.arange(positions)[:, None] / np.power(10000.0, waves)[None]
    return np.concatenate([np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])], axis=1).astype(np.float32)


def _shape(config: Mapping[str, Any]) -> Shape:
    """See :func:`~edgescribe.converters.families.bart_layers.bart_shape`."""
    own, other = config["vocab_size"], config.get("decoder_vocab_size")
    if other not in (None, own):
        raise StudentError(
            f"config.json has a decoder_vocab_size of {other!r} beside a vocab_size of {own}; a student has one "
            "tokenizer for what it reads and what it writes"
        )
    return bart_shape(config, 0)


def settle(config: dict[str, Any], state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """As :func:`~edgescribe.converters.families.bart_layers.settle_tables`, and one table of positions.

    Raises:
        StudentError: positions of the target that are not those of the source, or more than can be.
    """
    config, state = settle_tables(config, state, ties_target=True)
    config["decoder_vocab_size"] = config.get("decoder_vocab_size") or config.get("vocab_size")
    given = [state.pop(name) for name in POSITIONS if name in state]
    if len(given) == 2 and not (given[0].shape == given[1].shape and torch.equal(*given)):
        raise StudentError("the weights have other positions for the target than for the source; they are one table")
    count, width = config.get("max_position_embeddings", 1024), config.get("d_model")
    if given:
        state[POSITIONS[0]] = given[0]
    elif isinstance(count, int) and isinstance(width, int) and 0 < count <= LONGEST and 0 < width <= LONGEST:
        state[POSITIONS[0]] = torch.from_numpy(sinusoids(count, width))
    return config, state


def _copies(shape: Shape) -> dict[str, str]:
    # Written out, since a pruned width leaves other columns than transformers would make.
    return {POSITIONS[1]: POSITIONS[0], **table_copies(shape)}


def _width_power(name: str, shape: Shape) -> int:
    """Scaled embeddings are not normalised before the first layer: what reads and joins them there is scaled along."""
    if SCALED not in shape.variant:
        return 0
    if name in POSITIONS:
        return 1
    half = next((start for start in FIRST if name.startswith(start)), None)
    if half is None:
        return 0
    part, _, end = name.removeprefix(half).partition(".")
    return 1 if part == "out_proj" else -int(end == "weight")


FIRST = tuple(f"{PREFIX}{half}.layers.0.self_attn." for half in ("encoder", "decoder"))
"""What the names of the first layers' attention begin with."""


ANATOMY = Anatomy(
    model_type="marian",
    parameters=(
        *BART_TABLES,
        Parameter(POSITIONS[0].removeprefix(PREFIX), ("positions", "hidden"), "table"),
        *layer_parameters("encoder"),
        *layer_parameters("decoder"),
    ),
    heads_of={"summarize": BART_HEADS},
    prefix=PREFIX,
    config_fields={**CONFIG_FIELDS, "decoder_vocabulary": "decoder_vocab_size"},
    shape=_shape,
    forward=PROGRAMS.both,
    architectures={"summarize": "MarianMTModel"},
    layer_prefix=ENCODER,
    kind="encoder-decoder",
    halves=PROGRAMS.halves,
    decoder_prefix=DECODER,
    settle=settle,
    copies=_copies,
    width_power=_width_power,
)

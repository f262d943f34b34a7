"""How a writer is run unless its user says otherwise: ``generation_config.json``, and which tokens end a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import StudentError
from .json_files import read_object

FILE = "generation_config.json"

ID_FIELDS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""Fields that hold a token's number, or a list of them."""


def read_generation(folder: Path) -> dict[str, Any]:
    """The content of ``generation_config.json``; empty where there is none.

    Raises:
        StudentError: it cannot be read.
    """
    path = folder / FILE
    return read_object(path) if path.is_file() else {}


FIELDS = (
    *ID_FIELDS,
    "do_sample",
    "early_stopping",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
)
"""What older checkpoints say in ``config.json`` of how they are run."""


def generation_of(generation: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A summariser's defaults: those of ``generation_config.json``, where there is none those of ``config.json``."""
    if generation:
        return dict(generation)
    return {field: config[field] for field in FIELDS if config.get(field) is not None}


def eos_ids(generation: Mapping[str, Any], config: Mapping[str, Any], token: int | None) -> tuple[int, ...]:
    """The tokens that end a text: of the generation defaults, else of ``config.json``, else the tokenizer's ``token``.

    The order in which transformers' ``generate`` looks for them.
    """
    for value in (generation.get("eos_token_id"), config.get("eos_token_id"), token):
        if value is not None:
            return tuple(value) if isinstance(value, list) else (int(value),)
    return ()


def check_generation(source: object, generation: Mapping[str, Any], vocabulary: int) -> None:
    """Refuse numbers that are not of a token.

    Raises:
        StudentError: there is such a number; the message names the field.
    """
    for field in ID_FIELDS:
        value = generation.get(field)
        for number in value if isinstance(value, list) else [value]:
            is_number = isinstance(number, int) and not isinstance(number, bool)
            if number is not None and not (is_number and 0 <= number < vocabulary):
                raise StudentError(
                    f"{source}: {field} has {number!r}, which is not the number of one of its {vocabulary} tokens"
                )


def token_ids(settings: Mapping[str, Any]) -> set[int]:
    """Every token that the fields of ``settings`` name."""
    found: set[int] = set()
    for field in ID_FIELDS:
        value = settings.get(field)
        found.update(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))
    return found


def renumbered(settings: Mapping[str, Any], new_id: Mapping[int, int]) -> dict[str, Any]:
    """``settings`` with the tokens' new numbers; tokens without one are left out."""
    changed = dict(settings)
    for field in ID_FIELDS:
        value = settings.get(field)
        if isinstance(value, int):
            changed[field] = new_id.get(value)
        elif isinstance(value, list):
            changed[field] = [new_id[number] for number in value if number in new_id]
    return changed

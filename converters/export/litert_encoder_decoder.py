"""Writes an encoder-decoder as one LiteRT file.

It holds the program that reads a source, and once for each number of tokens that one run appends the program that
writes; weights are stored once for all of them, an embedding table that both halves and the head read too. The
programs are :mod:`~edgescribe.converters.export.litert_encoder_decoder_graph`'s. What a file holds tells
:func:`~edgescribe.converters.export.litert_decoder.read_back`, how the engine runs it
:func:`~edgescribe.converters.export.litert.kernel_report` and ``undelegated_operators``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ...errors import StudentError, UsageError
from ...runtimes.litert_decoder_file import room_for
from ..anatomy import Anatomy, Shape
from ..quantized_weights import QuantizedWeights
from .litert_encoder_decoder_graph import LiteRtSourceGraph, LiteRtTargetGraph
from .litert_flatbuffer import FlatbufferFile, write_atomically

CHUNKS = (8, 1)
"""Numbers of the target's tokens for which a file holds a signature unless others are asked for."""


def export_litert_encoder_decoder(
    anatomy: Anatomy,
    shape: Shape,
    weights: QuantizedWeights,
    path: Path,
    source_context: int,
    context: int,
    chunks: Sequence[int] = CHUNKS,
) -> None:
    """Write ``path`` (``.tflite``) whole or not at all: sources and targets of up to so many tokens.

    The signature ``encode_of_<source_context>`` takes int32 ``source_tokens`` ``[S]``, where the program has absolute
    positions ``source_positions`` ``[S]`` (below the context), and either float32 ``source_mask`` ``[1, 1, 1, S]``
    (added to the scores) or, with relative positions, int32 ``offsets`` ``[S, S]``: place of the key less place of the
    query plus ``source_context - 1``, or ``2 * source_context - 1`` for a key of padding. It gives for each layer of
    the decoder ``source_key_<layer>`` ``[1, H, S, D]`` and ``source_value_<layer>`` ``[1, H, D, S]``.

    There is a signature ``decode_<T>_of_<context>`` for each T of ``chunks`` up to ``context``, and for one token in
    any case. They take and give what a decoder's do (:mod:`~edgescribe.converters.export.litert_decoder`), take those
    keys and values and ``source_mask`` too, and with relative positions int32 ``distances`` ``[T, room]`` in place of
    ``mask``: how far each place in the caches lies behind each token, ``context`` for what lies before it and is not
    to be seen. Logits are given for all T tokens.

    S and the caches' room are as small as can be in the file, and the caller's to resize. Equal arguments give equal
    bytes.

    Raises:
        UsageError: a chunk or a context is below 1, or a context is over the student's positions.
        StudentError: the student is no encoder-decoder, or the program reads a weight that ``weights`` does not hold.
        OutputError: the folder cannot be written.
    """
    halves = anatomy.halves
    if halves is None:
        raise StudentError(f"{anatomy.model_type} is no encoder-decoder; export it as what it is")
    if min(context, source_context) < 1 or min(chunks, default=1) < 1:
        raise UsageError(
            f"sources of {source_context} tokens, targets of {context} in chunks of {tuple(chunks)}: each must be at "
            "least 1"
        )
    positions = shape.positions - shape.position_offset
    if max(context, source_context) > positions:
        raise UsageError(
            f"sources of {source_context} tokens and targets of {context} were asked for; the student has "
            f"{positions} positions"
        )
    file = FlatbufferFile(f"{anatomy.model_type}-summarize-{weights.precision}")
    room = room_for(1)
    source = LiteRtSourceGraph(file, weights, source_context, room)
    halves.encode(cast(Any, source), shape)  # it has the operators of this half alone
    source.finish()
    sizes = sorted({1, *(chunk for chunk in chunks if chunk <= context)})
    for tokens in sizes:
        target = LiteRtTargetGraph(file, weights, tokens, context, room_for(sizes[-1]), room)
        halves.decode(cast(Any, target), shape)
        target.finish()
    write_atomically(path, file.to_bytes())

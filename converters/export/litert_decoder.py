"""Writes a decoder as a LiteRT file, and reads back what the file holds.

LiteRT plans its memory for fixed shapes: a file holds the program once for each number of tokens that one run appends,
callable as ``decode_1_of_512``, ``decode_8_of_512`` … where caches can be resized for 512 tokens.
:mod:`~edgescribe.converters.export.litert_flatbuffer` stores the weights once for all of them. The program is
:class:`~edgescribe.converters.export.litert_decoder_graph.LiteRtDecoderGraph`'s. How the engine runs its linear
layers tell :func:`~edgescribe.converters.export.litert.kernel_report` and ``undelegated_operators``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from ...errors import UsageError
from ...runtimes.litert_decoder_file import room_for
from ..anatomy import Anatomy, Shape
from ..quantized_weights import QuantizedWeights, SiteGrids
from .litert_decoder_graph import LiteRtDecoderGraph
from .litert_flatbuffer import FlatbufferFile, write_atomically
from .litert_reading import add_site, agree, operator_code, read_model, telling_of_damage, tensor_data

CHUNKS = (128, 8, 1)
"""Numbers of tokens for which a file holds a signature unless others are asked for."""

MOST_VERIFIED = 16
"""The largest signature that gives every token's logits; larger ones, for prompts, give those of one token."""

_PART = re.compile(r"(.+)\[([0-9]+)\]")

Numbers = tuple[NDArray[np.int8], NDArray[np.float32]]


@dataclass(frozen=True)
class LiteRtDecoderContents:
    """What a file holds: integers and scales of each quantised linear layer and table, by name.

    ``rows``: int8 ``[out, in]`` with scales ``[out]``; ``blocks``: int4 as int8 ``[out, in / 32, 32]`` with scales
    ``[out, in / 32]``; ``sites``: activation grids by site, empty unless the file is static.
    """

    rows: dict[str, Numbers] = field(default_factory=dict)
    blocks: dict[str, Numbers] = field(default_factory=dict)
    sites: dict[str, SiteGrids] = field(default_factory=dict)


def export_litert_decoder(
    anatomy: Anatomy, shape: Shape, weights: QuantizedWeights, path: Path, context: int, chunks: Sequence[int] = CHUNKS
) -> None:
    """Write ``path`` (``.tflite``) whole or not at all, for texts of up to ``context`` tokens.

    It has a signature ``decode_<T>_of_<context>`` for each T of ``chunks`` up to ``context``, and for one token in any
    case. Each takes int32 ``tokens`` ``[T]``, ``positions`` ``[T]`` (below the context), ``key_start`` and
    ``value_start`` ``[4]`` (where in the caches the tokens go), float32 ``mask`` ``[1, 1, T, room]`` (added to the
    scores), and the caches, whose room, as small as can be in the file, is the caller's to resize; those of over
    :data:`MOST_VERIFIED` tokens int32 ``last`` ``[1]`` as well, the index of the token whose logits are wanted. It
    gives float32 ``logits`` ``[T or 1, V]`` and the caches. Equal arguments give equal bytes.

    Raises:
        UsageError: a chunk or the context is below 1, or the context is over the student's positions.
        StudentError: the program reads a weight that ``weights`` does not hold.
        OutputError: the folder cannot be written.
    """
    if context < 1 or min(chunks, default=1) < 1:
        raise UsageError(f"a context of {context} tokens in chunks of {tuple(chunks)}: each must be at least 1")
    if context > shape.positions:
        raise UsageError(f"a context of {context} tokens was asked for; the student has {shape.positions} positions")
    file = FlatbufferFile(f"{anatomy.model_type}-generate-{weights.precision}")
    sizes = sorted({1, *(chunk for chunk in chunks if chunk <= context)})
    for tokens in sizes:
        graph = LiteRtDecoderGraph(file, weights, tokens, context, room_for(sizes[-1]), tokens > MOST_VERIFIED)
        anatomy.forward(graph, shape, "generate")
        graph.finish()
    write_atomically(path, file.to_bytes())


def read_back(path: Path) -> LiteRtDecoderContents:
    """The integers, scales and grids that a file of ``export_litert_decoder`` holds; its signatures are found to agree.

    Raises:
        BundleError: the file is not a readable .tflite, or its signatures hold different numbers.
    """
    model = read_model(path)
    contents = LiteRtDecoderContents()
    readers = (schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.EMBEDDING_LOOKUP)
    with telling_of_damage(path):
        for graph in model.subgraphs:
            for operator in graph.operators:
                if operator_code(model, operator) not in readers:
                    continue
                weight = graph.tensors[operator.inputs[1]]
                scales = _scales(model, graph, weight)
                if scales is None:
                    continue
                held = contents.blocks if scales.ndim == 2 else contents.rows
                integers = tensor_data(model, weight)
                if scales.ndim == 2:
                    integers = integers.reshape(*scales.shape, -1)
                for name, start, stop in _parts(weight.name.decode(), len(scales)):
                    agree(path, held, name, (integers[start:stop], scales[start:stop]))
                entering, leaving = (graph.tensors[part[0]] for part in (operator.inputs, operator.outputs))
                if entering.type == schema.TensorType.INT8:
                    add_site(path, contents.sites, entering, leaving)
    return contents


def _scales(model: Any, graph: Any, tensor: Any) -> NDArray[np.float32] | None:
    """A weight's scales, ``[rows]`` or ``[rows, blocks]``; None where it is not quantised."""
    if tensor.type == schema.TensorType.INT8:
        return np.asarray(tensor.quantization.scale, np.float32)
    if tensor.type == schema.TensorType.INT4:
        held = graph.tensors[tensor.quantization.details.scales]
        return tensor_data(model, held).astype(np.float32)
    return None


def _parts(name: str, rows: int) -> list[tuple[str, int, int]]:
    """The layers that lie one below the other in a joined weight, with their first and last row."""
    if "[" not in name:
        return [(name, 0, rows)]
    found, start = [], 0
    for part in name.split("+"):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"a weight is named {name!r}")
        found.append((match[1], start, start + int(match[2])))
        start += int(match[2])
    return found

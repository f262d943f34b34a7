"""Writes an encoder-decoder as an ONNX artifact of four files for ONNX Runtime, and reads it back.

- ``<name>.onnx`` writes the target: :class:`~edgescribe.converters.export.onnx_encoder_decoder_target.OnnxTargetGraph`;
- ``<name>.source.onnx`` reads the source, ``<name>.kept.onnx`` makes keys and values of it:
  :class:`~edgescribe.converters.export.onnx_encoder_decoder_source.OnnxSourceGraph`;
- ``<name>.onnx.data`` holds the weights of all, those that several have once.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from ...errors import OutputError, StudentError, UsageError
from ...runtimes.onnxruntime_encoder_decoder_file import KEPT_KIND, KIND, SOURCE_KIND, kept_file, source_file
from ..anatomy import Anatomy, Shape
from ..encoder_decoder_graph import EncoderDecoderBuilder
from ..quantized_weights import QuantizedWeights
from .onnx_decoder import DecoderKernel, OnnxDecoderContents, kernel_report, read_into
from .onnx_decoder_data import write_graphs
from .onnx_encoder_decoder_source import OnnxSourceGraph
from .onnx_encoder_decoder_target import OnnxTargetGraph


def export_onnx_encoder_decoder(
    anatomy: Anatomy, shape: Shape, weights: QuantizedWeights, path: Path, source_context: int, context: int
) -> None:
    """Write ``path`` (``.onnx``) and the files beside it, whole or not at all. Equal arguments give equal bytes.

    Args:
        source_context: the most tokens of a source.
        context: the most tokens of a target.

    Raises:
        OutputError: the name does not end in ``.onnx`` or the folder cannot be written.
        UsageError: a context is not from 1 to the positions that the student was trained for.
        StudentError: a program reads a weight that ``weights`` does not hold, or the student is no encoder-decoder.
    """
    if path.suffix != ".onnx":
        raise OutputError(f"an ONNX artifact's name ends in .onnx, and {str(path)!r} does not: name it so")
    for what, tokens in (("source", source_context), ("target", context)):
        if not 1 <= tokens <= shape.positions:
            raise UsageError(f"a {what} of {tokens} tokens was asked for; the student takes 1 to {shape.positions}")
    if anatomy.halves is None:
        raise StudentError(f"a student of {anatomy.model_type} has no encoder and decoder: export it as what it is")
    source = OnnxSourceGraph(weights)
    target = OnnxTargetGraph(weights, context, source.reading)
    # Each half's program calls the operators of that half alone.
    anatomy.halves.encode(cast(EncoderDecoderBuilder, source), shape)
    anatomy.halves.decode(cast(EncoderDecoderBuilder, target), shape)
    heads, width = target.cache_widths[0]
    source_heads, source_width = source.kept_heads
    properties = {
        "precision": weights.precision,
        "context": str(context),
        "source_context": str(source_context),
        "vocabulary": str(target.vocabulary),
        "layers": str(len(target.cache_widths)),
        "cache_heads": str(heads),
        "cache_width": str(width),
        "cache_bytes": "4",
        "source_heads": str(source_heads),
        "source_width": str(source_width),
        "heads": str(max(shape.heads, shape.decoder_heads)),
        "hidden": str(shape.hidden),
        "neurons": str(max(shape.neurons, shape.decoder_neurons)),
        "weight_bytes": str(target.products.packed),
        "source_weight_bytes": str(source.weight_bytes),
    }
    write_graphs(
        path,
        {
            source_file(path).name: (source.reading, {"kind": SOURCE_KIND, **properties}),
            kept_file(path).name: (source.keeping, {"kind": KEPT_KIND, **properties}),
            path.name: (target.writer, {"kind": KIND, **properties}),
        },
    )


def read_back(path: Path) -> OnnxDecoderContents:
    """The integers, scales and grids that an artifact of :func:`export_onnx_encoder_decoder` holds, of all graphs.

    Raises:
        BundleError: a file is not a readable ONNX model, or is missing.
    """
    contents = OnnxDecoderContents({}, {}, {})
    for file in (source_file(path), kept_file(path), path):
        read_into(contents, file)
    return contents


def encoder_decoder_kernels(path: Path) -> list[DecoderKernel]:
    """How ONNX Runtime's CPU provider runs each linear layer of all graphs, read from what it optimised.

    Raises:
        BundleError: a file is not a readable ONNX model.
    """
    return [kernel for file in (source_file(path), kept_file(path), path) for kernel in kernel_report(file)]
